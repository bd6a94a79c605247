#include "request/infill_body.hpp"

#include <utility>

#include "request/json_fields.hpp"

namespace cairn {

namespace json = boost::json;

Result<InfillBody> parse_infill_body(std::string_view text) {
  Result<json::object> parsed = parse_object(text);
  if (!parsed) return parsed.error();
  const json::value body(std::move(*parsed));
  const Error refused = downstream_error(ErrorCode::malformed, "body: no text to fill in");
  const auto read = [&body](std::string_view key, std::string& out, bool required) {
    const json::value* value = member(body, key);
    if (value == nullptr || (!required && value->is_null())) return !required;
    if (!value->is_string()) return false;
    out = string_member_or(body, key);
    return true;
  };
  InfillBody infill;
  if (!read("input_prefix", infill.prefix, true) || !read("input_suffix", infill.suffix, true) || !read("prompt", infill.prompt, false)) {
    return refused;
  }
  const json::value* files = member(body, "input_extra");
  if (files == nullptr || files->is_null()) return infill;
  if (!files->is_array()) return refused;
  for (const json::value& file : files->get_array()) {
    const json::value* content = member(file, "text");
    const json::value* name = member(file, "filename");
    if (content == nullptr || !content->is_string() || (name != nullptr && !name->is_string())) return refused;
    infill.files.push_back(InfillFile{string_member_or(file, "filename", "tmp"), string_member_or(file, "text")});
  }
  return infill;
}

}  // namespace cairn
