// What TLS needs from files: a certificate and its key to serve with, or whom to trust as a client. Serves any number of connections.
// Thread: any at start, then the I/O thread. Errors: invalid, beginning with the configuration's key and the file.
#pragma once

#include <openssl/types.h>

#include <memory>
#include <string>

#include "base/result.hpp"

namespace cairn {

class TlsContext {
 public:
  // `certificate`: PEM, its chain behind it; `key`: PEM without a passphrase, may be the same file.
  static Result<std::shared_ptr<TlsContext>> for_server(const std::string& certificate, const std::string& key);

  struct Trust {
    std::string ca;      // PEM; empty: the system's
    bool verify = true;  // false: any certificate will do
  };
  static Result<std::shared_ptr<TlsContext>> for_client(const Trust& trust);
  // Trusts the one certificate of that file (`tls_certificate`), whatever names it has and however old it is: for Cairn's commands,
  // who talk to their own server.
  static Result<std::shared_ptr<TlsContext>> for_own_server(const std::string& certificate);

  // A connection of this context. `name`: the server's, asked for and checked; empty as a server.
  std::unique_ptr<SSL, void (*)(SSL*)> make_connection(const std::string& name) const;
  // Whom it trusts, as a client: "backend_ca /etc/ca.pem".
  const std::string& trusted() const { return trusted_; }
  // When our certificate ends and whether it has: "is valid until 2027-01-01", "has expired on …"; as a server.
  std::string validity() const;
  bool expired() const;

  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

 private:
  explicit TlsContext(SSL_CTX* context) : context_(context) {}

  SSL_CTX* context_;
  std::string trusted_;
  bool server_ = false;
  bool check_name_ = false;
};

}  // namespace cairn
