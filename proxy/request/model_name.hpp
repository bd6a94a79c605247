// Which model a request names: in the query of a GET, in the body of a POST, as llama-server's router and llama-swap look for it.
// Pure.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace cairn {

// Of "/slots?model=NAME"; nullopt: none, or an empty one.
std::optional<std::string> model_in_query(std::string_view target);
// The member `model` of a JSON object (the last, when there are several), or the field of a form (`content_type`
// multipart/form-data). nullopt: none, an empty one, or no text: whoever serves it says what is wrong.
std::optional<std::string> model_in_body(std::string_view content_type, std::string_view body);

}  // namespace cairn
