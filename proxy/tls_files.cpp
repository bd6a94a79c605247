#include "tls_files.hpp"

#include "backend/upstream.hpp"

namespace cairn {

Result<TlsFiles> load_tls(const Config& config) {
  TlsFiles files;
  if (!config.tls_certificate.empty()) {
    const auto loaded = TlsContext::for_server(config.tls_certificate, config.tls_key);
    if (!loaded) return loaded.error();
    files.listen = *loaded;
  }
  if (const auto address = parse_upstream_url(config.backend); address && address->tls) {
    TlsContext::Trust trust;
    trust.ca = config.backend_ca;
    trust.verify = config.backend_tls_verify;
    const auto loaded = TlsContext::for_client(trust);
    if (!loaded) return loaded.error();
    files.backend = *loaded;
  }
  return files;
}

}  // namespace cairn
