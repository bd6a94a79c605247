#include "request/prompt_body.hpp"

#include <fmt/format.h>
#include <simdjson.h>

#include <boost/json.hpp>
#include <boost/system/error_code.hpp>

#include <utility>

#include "request/chat_conversion.hpp"

namespace cairn {

namespace {

namespace ondemand = simdjson::ondemand;

Error unreadable(std::string_view what) {
  return downstream_error(ErrorCode::malformed, fmt::format("body: {}", what));
}

// Content parts that become tokens we cannot see. The quotes of such a key inside a string would be escaped.
bool mentions_media(std::string_view raw) {
  for (const std::string_view key :
       {"\"image_url\"", "\"input_audio\"", "\"input_video\"", "\"video_url\"", "\"input_image\"", "\"multimodal_data\""}) {
    if (raw.find(key) != std::string_view::npos) return true;
  }
  return false;
}

bool append_part(ondemand::value value, PromptBody& body) {
  ondemand::json_type type{};
  if (value.type().get(type) != simdjson::SUCCESS) return false;
  if (type == ondemand::json_type::string) {
    std::string_view text;
    if (value.get_string().get(text) != simdjson::SUCCESS) return false;
    body.prompt.emplace_back(std::string{text});
    return true;
  }
  if (type == ondemand::json_type::number) {
    std::int64_t token = 0;
    if (value.get_int64().get(token) != simdjson::SUCCESS) return false;
    body.prompt.emplace_back(static_cast<Token>(token));
    return true;
  }
  return false;
}

// llama-server: a list with a number in it is one prompt of mixed parts; a list of strings or lists is a batch.
bool read_prompt(ondemand::value value, PromptBody& body) {
  ondemand::json_type type{};
  if (value.type().get(type) != simdjson::SUCCESS) return false;
  if (type == ondemand::json_type::string) return append_part(value, body);
  if (type == ondemand::json_type::object) {
    body.has_media = true;  // {"prompt_string":…, "multimodal_data":…}
    return true;
  }
  if (type != ondemand::json_type::array) return false;
  ondemand::array list;
  if (value.get_array().get(list) != simdjson::SUCCESS) return false;
  bool has_number = false;
  std::size_t parts = 0;
  for (auto item : list) {
    ondemand::value part;
    if (item.get(part) != simdjson::SUCCESS) return false;
    ondemand::json_type part_type{};
    if (part.type().get(part_type) != simdjson::SUCCESS) return false;
    ++parts;
    if (part_type == ondemand::json_type::array || part_type == ondemand::json_type::object) {
      body.several = true;  // a batch, or one with media
      continue;
    }
    has_number = has_number || part_type == ondemand::json_type::number;
    if (!append_part(part, body)) return false;
  }
  if (!has_number && parts > 1) body.several = true;
  return true;
}

// The parser looks at no value that it skips, and what is put behind the last one would change what the backend says of it.
bool last_value_is_whole(std::string_view text) {
  const std::size_t close = text.rfind('}');
  if (close == 0 || close == std::string_view::npos) return false;
  const std::size_t end = text.find_last_not_of(" \t\r\n", close - 1);
  constexpr std::string_view ends_other_than_scalars = "\"]}{";
  if (end == std::string_view::npos || ends_other_than_scalars.find(text[end]) != std::string_view::npos) return true;
  const std::size_t begin = text.find_last_of(" \t\r\n:", end) + 1;
  boost::system::error_code error;
  (void)boost::json::parse(text.substr(begin, end + 1 - begin), error);
  return !error;
}

}  // namespace

Result<PromptBody> parse_prompt_body(PromptForm form, std::string_view text) {
  simdjson::padded_string padded{text};
  ondemand::parser parser;
  ondemand::document document;
  if (parser.iterate(padded).get(document) != simdjson::SUCCESS) return unreadable("not JSON");
  ondemand::object object;
  if (document.get_object().get(object) != simdjson::SUCCESS) return unreadable("not an object");
  PromptBody body;
  body.form = form;
  body.takes_slot = form != PromptForm::messages;
  for (auto field : object) {
    std::string_view key;
    ondemand::value value;
    if (field.unescaped_key().get(key) != simdjson::SUCCESS || field.value().get(value) != simdjson::SUCCESS) {
      return unreadable("broken member");
    }
    bool flag = false;
    std::int64_t number = 0;
    if (key == "stream") {
      if (value.get_bool().get(flag) == simdjson::SUCCESS) body.stream = flag;
    } else if (key == "cache_prompt") {
      // Whatever it is, the client said something: we do not say it again.
      body.cache_prompt = value.get_bool().get(flag) == simdjson::SUCCESS ? flag : true;
    } else if (form == PromptForm::messages) {
      continue;  // the backend takes over nothing of the rest
    } else if (key == "return_progress") {
      if (value.get_bool().get(flag) == simdjson::SUCCESS) body.return_progress = flag;
    } else if (key == "id_slot") {
      constexpr int any = -1, for_the_backend_to_judge = -2;
      const bool is_number = value.get_int64().get(number) == simdjson::SUCCESS && std::in_range<int>(number);
      body.id_slot = is_number ? static_cast<int>(number) : for_the_backend_to_judge;
      // The backend's default, spelled out.
      if (value.is_null().value_unsafe() || body.id_slot == any) body.id_slot.reset();
    } else if (key == "n" || key == "n_cmpl" || key == "best_of") {
      if (value.get_int64().get(number) == simdjson::SUCCESS && number > 1) body.several = true;
    } else if (key == "lora") {
      ondemand::array list;
      if (value.get_array().get(list) == simdjson::SUCCESS) {
        std::size_t count = 0;
        std::string_view raw;
        const bool read = list.count_elements().get(count) == simdjson::SUCCESS && list.raw_json().get(raw) == simdjson::SUCCESS;
        body.lora = read && count > 0 ? std::string{raw} : std::string{};
      }
    } else if (key == "prompt" && form == PromptForm::completion) {
      body.prompt.clear();  // of duplicates the backend takes the last
      if (!read_prompt(value, body)) return unreadable("prompt");
    } else if (key == "messages" && form == PromptForm::chat) {
      std::string_view raw;
      ondemand::array list;
      if (value.get_array().get(list) != simdjson::SUCCESS || list.raw_json().get(raw) != simdjson::SUCCESS) {
        return unreadable("messages");
      }
      body.has_messages = true;
      body.has_media = mentions_media(raw);
    }
  }
  const char* rest = nullptr;
  if (document.current_location().get(rest) == simdjson::SUCCESS) return unreadable("more than an object");
  if (!last_value_is_whole(text)) return unreadable("broken last value");
  if (form == PromptForm::messages || form == PromptForm::responses) {
    Result<ConvertedChat> converted = form == PromptForm::messages ? chat_of_messages(text) : chat_of_responses(text);
    if (!converted) return converted.error();
    body.chat = std::move(converted->body);
    body.has_media = converted->has_media;
  }
  if (form == PromptForm::infill) {
    Result<InfillBody> infill = parse_infill_body(text);
    if (!infill) return infill.error();
    body.infill = std::move(*infill);
  }
  if (form == PromptForm::chat && !body.has_messages) return unreadable("no messages");
  if (form == PromptForm::completion && body.prompt.empty() && !body.several && !body.has_media) return unreadable("no prompt");
  return body;
}

std::string splice_slot(std::string_view body, int slot, std::optional<bool> cache_prompt) {
  const std::size_t close = body.rfind('}');
  const std::size_t before = body.find_last_not_of(" \t\r\n", close - 1);
  std::string spliced;
  spliced.reserve(body.size() + 48);
  spliced.append(body.substr(0, close));
  if (body[before] != '{') spliced += ',';
  fmt::format_to(std::back_inserter(spliced), R"("id_slot":{})", slot);
  if (cache_prompt) fmt::format_to(std::back_inserter(spliced), R"(,"cache_prompt":{})", *cache_prompt);
  spliced.append(body.substr(close));
  return spliced;
}

}  // namespace cairn
