// The TLS that the configuration asks for, loaded from its files.
// Errors: invalid, beginning with the configuration's key and the file.
#pragma once

#include <memory>

#include "backend/tls_context.hpp"
#include "config.hpp"

namespace cairn {

struct TlsFiles {
  std::shared_ptr<const TlsContext> listen;   // null: plain
  std::shared_ptr<const TlsContext> backend;  // null: none is https
};

Result<TlsFiles> load_tls(const Config& config);

}  // namespace cairn
