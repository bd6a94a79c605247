#include "tls_files.hpp"

#include <algorithm>

#include "backend/upstream.hpp"

namespace cairn {

Result<TlsFiles> load_tls(const Config& config) {
  TlsFiles files;
  if (!config.tls_certificate.empty()) {
    const auto loaded = TlsContext::for_server(config.tls_certificate, config.tls_key);
    if (!loaded) return loaded.error();
    files.listen = *loaded;
  }
  const std::vector<BackendConfig> backends = all_backends(config);
  const auto asks_for_tls = [](const BackendConfig& backend) {
    const auto address = parse_upstream_url(backend.url);
    return address && address->tls;
  };
  if (std::any_of(backends.begin(), backends.end(), asks_for_tls)) {
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
