#include "request/infill.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "backend/llama_api.hpp"
#include "request/token_memo.hpp"

namespace cairn {

namespace {

constexpr std::int64_t batch_tokens = 2048;  // --batch-size, its default

// Words that no model's own tokens contain.
constexpr std::string_view file_mark = "cairnfile", text_mark = "cairntext", second_file_mark = "cairnother", second_text_mark = "cairnsecond",
                           prefix_mark = "cairnprefix", suffix_mark = "cairnsuffix";

// What stands before `mark` in `text` from `from` on; `from` moves behind the mark.
std::optional<std::string> take_until(std::string_view text, std::string_view mark, std::size_t& from) {
  const std::size_t at = text.find(mark, from);
  if (at == std::string_view::npos) return std::nullopt;
  std::string between{text.substr(from, at - from)};
  from = at + mark.size();
  return between;
}

ResultTask<Tokens> own_tokens(LlamaApi& api, const std::string& text, CancelSource& cancel) {
  if (text.empty()) co_return Tokens{};
  Result<TokenPieces> pieces = co_await api.tokenize(text, false, cancel);
  if (!pieces) co_return pieces.error();
  co_return std::move(pieces->tokens);
}

Error other_order() { return upstream_error(ErrorCode::unsupported, "/infill: the parts are put together in a way that is not known"); }

void append(Tokens& out, const Tokens& more) { out.insert(out.end(), more.begin(), more.end()); }

}  // namespace

ResultTask<InfillLayout> learn_infill_layout(LlamaApi& api, CancelSource& cancel) {
  const std::string alone = fmt::format(R"("input_prefix":"{}","input_suffix":"{}","n_predict":0,"response_fields":["prompt"])", prefix_mark, suffix_mark);
  const std::string with_files = fmt::format(R"({{"input_extra":[{{"filename":"{}","text":"{}"}},{{"filename":"{}","text":"{}"}}],{}}})", file_mark,
                                             text_mark, second_file_mark, second_text_mark, alone);
  Result<std::string> shown = co_await api.infill_prompt(with_files, cancel);
  if (!shown) co_return shown.error();
  const std::string& all = *shown;
  std::size_t at = 0;
  const bool names_files = all.find(file_mark) != std::string::npos;
  std::optional<std::string> head = take_until(all, names_files ? file_mark : text_mark, at);
  if (names_files && take_until(all, text_mark, at) != "\n") co_return other_order();
  const std::optional<std::string> between = take_until(all, names_files ? second_file_mark : second_text_mark, at);
  if (names_files && take_until(all, second_text_mark, at) != "\n") co_return other_order();
  const std::optional<std::string> before_prefix = take_until(all, prefix_mark, at);
  const std::optional<std::string> before_suffix = take_until(all, suffix_mark, at);
  if (!head || !between || !before_prefix || !before_suffix || !head->ends_with(*between)) co_return other_order();
  head->resize(head->size() - between->size());

  Result<std::string> shown_alone = co_await api.infill_prompt("{" + alone + "}", cancel);
  if (!shown_alone) co_return shown_alone.error();
  std::size_t in_alone = 0;
  const std::optional<std::string> before_prefix_alone = take_until(*shown_alone, prefix_mark, in_alone);
  if (!before_prefix_alone) co_return other_order();

  InfillLayout layout;
  layout.names_files = names_files;
  const std::string end = all.substr(at);
  const std::array<std::pair<const std::string*, Tokens*>, 6> parts{{{&*head, &layout.head},
                                                                     {&*between, &layout.before_file},
                                                                     {&*before_prefix, &layout.before_prefix},
                                                                     {&*before_prefix_alone, &layout.before_prefix_alone},
                                                                     {&*before_suffix, &layout.before_suffix},
                                                                     {&end, &layout.end}}};
  for (const auto& [text, tokens] : parts) {
    Result<Tokens> own = co_await own_tokens(api, *text, cancel);
    if (!own) co_return own.error();
    *tokens = std::move(*own);
  }
  co_return layout;
}

ResultTask<std::optional<Tokens>> infill_tokens(const InfillBody& body, const InfillLayout& layout, std::int64_t context, TokenMemo& memo,
                                                CancelSource& cancel) {
  const bool add_special = false, parse_special = true;
  Tokens tokens;
  if (!body.files.empty()) tokens = layout.head;
  for (const InfillFile& file : body.files) {
    append(tokens, layout.before_file);
    if (layout.names_files) {
      Result<Tokens> name = co_await memo.tokenize(file.name + "\n", add_special, cancel, !parse_special);
      if (!name) co_return name.error();
      append(tokens, *name);
    }
    Result<Tokens> text = co_await memo.tokenize(file.text, add_special, cancel, !parse_special);
    if (!text) co_return text.error();
    append(tokens, *text);
  }
  append(tokens, body.files.empty() ? layout.before_prefix_alone : layout.before_prefix);
  Result<Tokens> prefix = co_await memo.tokenize(body.prefix, add_special, cancel, !parse_special);
  if (!prefix) co_return prefix.error();
  Result<Tokens> suffix = co_await memo.tokenize(body.suffix, add_special, cancel, !parse_special);
  if (!suffix) co_return suffix.error();
  Result<Tokens> prompt = co_await memo.tokenize(body.prompt, add_special, cancel, parse_special);
  if (!prompt) co_return prompt.error();

  // What is around the gap has to fit into a batch, three parts before and one behind; other files into the rest of the context.
  const std::int64_t batch = std::min(batch_tokens, context);
  const auto size = [](const Tokens& part) { return static_cast<std::int64_t>(part.size()); };
  const std::int64_t cut = std::max<std::int64_t>(0, size(prefix.value()) - 3 * (batch / 4));
  prefix->erase(prefix->begin(), prefix->begin() + cut);
  if (size(tokens) > std::max<std::int64_t>(0, context - batch) && !body.files.empty()) co_return std::nullopt;
  const std::int64_t kept = std::clamp<std::int64_t>(batch / 4 - (2 + size(prompt.value())), 0, size(suffix.value()));
  suffix->resize(static_cast<std::size_t>(kept));
  append(tokens, *prefix);
  append(tokens, *prompt);
  append(tokens, layout.before_suffix);
  append(tokens, *suffix);
  append(tokens, layout.end);
  co_return std::optional<Tokens>{std::move(tokens)};
}

}  // namespace cairn
