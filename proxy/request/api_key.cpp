#include "request/api_key.hpp"

#include <openssl/crypto.h>

#include "backend/http_text.hpp"

namespace cairn {

namespace {

bool same(std::string_view one, std::string_view other) {
  return one.size() == other.size() && CRYPTO_memcmp(one.data(), other.data(), one.size()) == 0;
}

}  // namespace

bool carries_key(const HeaderFields& fields, std::string_view key) {
  constexpr std::string_view scheme = "Bearer ";
  const std::string_view authorization = fields.get("Authorization").value_or("");
  const bool bearer = iequals(authorization.substr(0, scheme.size()), scheme) && same(trim(authorization.substr(scheme.size())), key);
  return bearer || same(fields.get("X-Api-Key").value_or(""), key);
}

}  // namespace cairn
