// A self-signed certificate for 127.0.0.1 and its key, in a file of a folder that goes with it.
#pragma once

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <filesystem>
#include <stdexcept>
#include <string>

namespace cairn::test {

class Certificate {
 public:
  Certificate() : folder_(std::filesystem::temp_directory_path() / ("cairn-certificate-" + std::to_string(::getpid()) + "-" + std::to_string(number()))) {
    std::filesystem::create_directories(folder_);
    EVP_PKEY* key = EVP_EC_gen("P-256");
    X509* certificate = X509_new();
    X509_set_version(certificate, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
    X509_set_pubkey(certificate, key);
    X509_EXTENSION* names = X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, "IP:127.0.0.1");
    X509_add_ext(certificate, names, -1);
    X509_sign(certificate, key, EVP_sha256());
    std::FILE* out = std::fopen(file().c_str(), "wb");
    const bool written = out != nullptr && PEM_write_X509(out, certificate) == 1 &&
                         PEM_write_PrivateKey(out, key, nullptr, nullptr, 0, nullptr, nullptr) == 1;
    if (out != nullptr) std::fclose(out);
    X509_EXTENSION_free(names);
    X509_free(certificate);
    EVP_PKEY_free(key);
    if (!written) throw std::runtime_error("no certificate could be written");
  }
  ~Certificate() { std::filesystem::remove_all(folder_); }
  Certificate(const Certificate&) = delete;
  Certificate& operator=(const Certificate&) = delete;

  // Both in one.
  std::string file() const { return (folder_ / "server.pem").string(); }

 private:
  static int number() {
    static int last = 0;
    return ++last;
  }

  std::filesystem::path folder_;
};

}  // namespace cairn::test
