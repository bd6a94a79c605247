// Small pieces of HTTP text: comparing names, splitting lists, writing heads and chunk sizes.
// Errors: none.
#pragma once

#include <string>
#include <string_view>

#include "backend/http_message.hpp"

namespace cairn {

bool iequals(std::string_view a, std::string_view b);  // ASCII
std::string_view trim(std::string_view text);          // spaces and tabs
// Cuts the first item of a comma-separated list off `rest`.
std::string_view take_list_item(std::string_view& rest);

// The fields of a message whose connection-level fields are ours: hop-by-hop fields are dropped, Content-Length or
// Transfer-Encoding for `framing` stand where the message had its own, or at the end.
void append_fields(std::string& out, const HeaderFields& fields, BodyFraming framing);

std::string request_head_text(const RequestHead& head, BodyFraming framing, std::string_view host);

std::string chunk_prefix(std::size_t bytes);  // "1f\r\n"

}  // namespace cairn
