#include "backend/tls_context.hpp"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <boost/asio/ip/address.hpp>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <string_view>

namespace cairn {

namespace {

Error bad_file(std::string_view key, const std::string& file, std::string_view why) {
  Error error = internal_error(std::string(key) + " " + file + ": " + std::string(why));
  error.code = ErrorCode::invalid;
  return error;
}

// OpenSSL's own words for a file that is not there are of little help.
Result<void> readable(std::string_view key, const std::string& file) {
  std::FILE* opened = std::fopen(file.c_str(), "rb");
  if (opened == nullptr) return bad_file(key, file, std::strerror(errno));
  const bool directory = std::fgetc(opened) == EOF && std::ferror(opened) != 0;
  std::fclose(opened);
  if (directory) return bad_file(key, file, "cannot be read");
  return {};
}

std::string last_reason() {
  const char* reason = ERR_reason_error_string(ERR_peek_last_error());
  return reason != nullptr ? reason : "unknown error";
}

// Without it OpenSSL would ask the terminal.
int no_passphrase(char*, int, int, void* asked) {
  if (asked != nullptr) *static_cast<bool*>(asked) = true;
  return -1;
}

SSL_CTX* make_context(const SSL_METHOD* method) {
  SSL_CTX* context = SSL_CTX_new(method);
  if (context == nullptr) throw_exception_from_error(internal_error("SSL_CTX_new: " + last_reason()), BOOST_CURRENT_LOCATION);
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  // A write may go on from another buffer, and reports what it has done so far.
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_default_passwd_cb(context, &no_passphrase);
  return context;
}

}  // namespace

TlsContext::~TlsContext() { SSL_CTX_free(context_); }

Result<std::shared_ptr<TlsContext>> TlsContext::for_server(const std::string& certificate, const std::string& key) {
  constexpr std::string_view certificate_key = "tls_certificate";
  constexpr std::string_view key_key = "tls_key";
  Result<void> there = readable(certificate_key, certificate);
  if (there) there = readable(key_key, key);
  if (!there) return there.error();

  ERR_clear_error();
  const std::shared_ptr<TlsContext> made(new TlsContext(make_context(TLS_server_method())));
  made->server_ = true;
  if (SSL_CTX_use_certificate_chain_file(made->context_, certificate.c_str()) != 1) {
    return bad_file(certificate_key, certificate, "no certificate in PEM form: " + last_reason());
  }
  bool asked_for_passphrase = false;
  SSL_CTX_set_default_passwd_cb_userdata(made->context_, &asked_for_passphrase);
  const bool loaded = SSL_CTX_use_PrivateKey_file(made->context_, key.c_str(), SSL_FILETYPE_PEM) == 1;
  SSL_CTX_set_default_passwd_cb_userdata(made->context_, nullptr);
  if (!loaded) {
    const int reason = ERR_GET_REASON(ERR_peek_last_error());
    const int library = ERR_GET_LIB(ERR_peek_last_error());
    if (library == ERR_LIB_X509 && (reason == X509_R_KEY_VALUES_MISMATCH || reason == X509_R_KEY_TYPE_MISMATCH)) {
      return bad_file(key_key, key, "is not the key of " + std::string(certificate_key) + " " + certificate);
    }
    if (asked_for_passphrase) {
      return bad_file(key_key, key, "is protected by a passphrase, and nobody is there to type it");
    }
    return bad_file(key_key, key, "no private key in PEM form: " + last_reason());
  }
  return made;
}

Result<std::shared_ptr<TlsContext>> TlsContext::for_client(const Trust& trust) {
  ERR_clear_error();
  const std::shared_ptr<TlsContext> made(new TlsContext(make_context(TLS_client_method())));
  if (!trust.verify) return made;
  made->check_name_ = true;
  SSL_CTX_set_verify(made->context_, SSL_VERIFY_PEER, nullptr);
  made->trusted_ = trust.ca.empty() ? "the system's authorities (backend_ca names others)" : "backend_ca " + trust.ca;
  if (trust.ca.empty()) {
    SSL_CTX_set_default_verify_paths(made->context_);
    return made;
  }
  Result<void> there = readable("backend_ca", trust.ca);
  if (!there) return there.error();
  if (SSL_CTX_load_verify_file(made->context_, trust.ca.c_str()) != 1) {
    return bad_file("backend_ca", trust.ca, "no certificate in PEM form: " + last_reason());
  }
  // The file may name the server's own certificate instead of who signed it.
  X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(made->context_), X509_V_FLAG_PARTIAL_CHAIN);
  return made;
}

Result<std::shared_ptr<TlsContext>> TlsContext::for_own_server(const std::string& certificate) {
  Result<void> there = readable("tls_certificate", certificate);
  if (!there) return there.error();
  ERR_clear_error();
  const std::shared_ptr<TlsContext> made(new TlsContext(make_context(TLS_client_method())));
  made->trusted_ = "tls_certificate " + certificate;
  SSL_CTX_set_verify(made->context_, SSL_VERIFY_PEER, nullptr);
  if (SSL_CTX_load_verify_file(made->context_, certificate.c_str()) != 1) {
    return bad_file("tls_certificate", certificate, "no certificate in PEM form: " + last_reason());
  }
  X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(made->context_), X509_V_FLAG_PARTIAL_CHAIN | X509_V_FLAG_NO_CHECK_TIME);
  return made;
}

std::unique_ptr<SSL, void (*)(SSL*)> TlsContext::make_connection(const std::string& name) const {
  std::unique_ptr<SSL, void (*)(SSL*)> connection(SSL_new(context_), &SSL_free);
  if (!connection) throw_exception_from_error(internal_error("SSL_new: " + last_reason()), BOOST_CURRENT_LOCATION);
  if (server_) {
    SSL_set_accept_state(connection.get());
    return connection;
  }
  SSL_set_connect_state(connection.get());
  boost::system::error_code no_address;
  boost::asio::ip::make_address(name, no_address);
  const bool is_address = !no_address;
  if (!is_address) SSL_set_tlsext_host_name(connection.get(), name.c_str());  // addresses are not allowed there
  if (check_name_ && is_address) X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(connection.get()), name.c_str());
  if (check_name_ && !is_address) SSL_set1_host(connection.get(), name.c_str());
  return connection;
}

std::string TlsContext::validity() const {
  std::tm until{};
  const X509* certificate = SSL_CTX_get0_certificate(context_);
  if (certificate == nullptr || ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &until) != 1) return "has no date";
  char day[16] = "";
  std::strftime(day, sizeof day, "%Y-%m-%d", &until);
  return std::string(expired() ? "has expired on " : "is valid until ") + day;
}

bool TlsContext::expired() const {
  const X509* certificate = SSL_CTX_get0_certificate(context_);
  return certificate != nullptr && X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0;
}

}  // namespace cairn
