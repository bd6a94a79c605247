#include "checkpoint/found_states.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "checkpoint/store_identity.hpp"

namespace cairn {
namespace {

constexpr std::array<std::string_view, 3> part_suffixes{"", side_file_suffixes[0], side_file_suffixes[1]};
static_assert(part_suffixes.size() == state_parts);
constexpr std::size_t parts = 2 * state_parts;  // of a state first, then of one that is being saved

std::string_view suffix_of(std::size_t part) { return part < state_parts ? state_suffix : saving_suffix; }

// Over 15: not a digit that we write.
constexpr std::array<std::uint8_t, 256> hex_values = [] {
  std::array<std::uint8_t, 256> values{};
  values.fill(0xff);
  for (std::uint8_t value = 0; value < 16; ++value) values[static_cast<unsigned char>("0123456789abcdef"[value])] = value;
  return values;
}();

// What tells two of our names apart: the random digits, and which file of a state it is.
struct OwnName {
  std::array<std::uint64_t, 2> digits{};
  std::uint8_t part = 0;
};

std::optional<OwnName> parse_name(std::string_view name) {
  constexpr std::size_t base = name_prefix.size() + name_digits;
  if (name.size() <= base || !name.starts_with(name_prefix)) return std::nullopt;
  OwnName own;
  std::uint8_t seen = 0;
  for (std::size_t i = 0; i < name_digits; ++i) {
    const std::uint8_t value = hex_values[static_cast<unsigned char>(name[name_prefix.size() + i])];
    seen |= value;
    std::uint64_t& half = own.digits[i * 2 / name_digits];
    half = half << 4 | (value & 15U);
  }
  if (seen > 15) return std::nullopt;
  const std::string_view rest = name.substr(base);
  for (; own.part < parts; ++own.part) {
    const std::string_view suffix = suffix_of(own.part);
    if (rest.starts_with(suffix) && rest.substr(suffix.size()) == part_suffixes[own.part % state_parts]) return own;
  }
  return std::nullopt;
}

}  // namespace

std::optional<Expected> expected_of(const CheckpointRecord& record) {
  const std::optional<OwnName> own = parse_name(record.file_name);
  if (!own || own->part != 0) return std::nullopt;
  Expected expected{own->digits, {}, record.id};
  expected.sizes.fill(no_file);
  for (const FileStamp& file : record.files) {
    const auto part = std::find(part_suffixes.begin(), part_suffixes.end(), file.suffix);
    if (part == part_suffixes.end()) return std::nullopt;
    expected.sizes[static_cast<std::size_t>(part - part_suffixes.begin())] = file.bytes;
  }
  return expected;
}

Result<void> FoundStates::look(FileLayer& files) {
  auto directory = files.open_directory(path_);
  if (!directory) return directory.error();
  for (;;) {
    const auto name = (*directory)->next();
    if (!name) return name.error();
    if (name->empty()) break;
    const std::optional<OwnName> own = parse_name(*name);
    if (!own) continue;
    const auto status = (*directory)->status();
    if (!status && status.error().code == ErrorCode::not_found) continue;
    const Kind kind = !status ? Kind::unknown : status->regular ? Kind::file : Kind::other;
    files_.push_back({own->digits, status ? status->bytes : 0, own->part, kind});
  }
  std::sort(files_.begin(), files_.end());
  next_ = files_.begin();
  return {};
}

bool FoundStates::keep(const Expected& state) {
  while (next_ != files_.end() && next_->digits < state.digits) ++next_;
  if (next_ == files_.end() || next_->digits != state.digits || next_->part != 0) return false;
  Sizes sizes;
  sizes.fill(no_file);
  bool unknown = false;
  auto end = next_;
  for (; end != files_.end() && end->digits == state.digits && end->part < state_parts; ++end) {
    if (end->kind == Kind::other) return false;
    unknown = unknown || end->kind == Kind::unknown;
    sizes[end->part] = end->bytes;
  }
  if (!unknown && sizes != state.sizes) return false;
  for (auto file = next_; file != end; ++file) file->kept = true;
  return true;
}

FoundStates::Swept FoundStates::sweep(FileLayer& files) const {
  Swept swept;
  for (const File& file : files_) {
    if (file.kept || file.kind != Kind::file) continue;
    std::string state_name = fmt::format("{}{:016x}{:016x}{}", name_prefix, file.digits[0], file.digits[1], suffix_of(file.part));
    if (files.remove(path_ + "/" + state_name + std::string(part_suffixes[file.part % state_parts]))) {
      ++swept.files;
    } else {
      swept.left.push_back(std::move(state_name));
    }
  }
  return swept;
}

bool FoundStates::kept_any() const { return std::ranges::any_of(files_, &File::kept); }

bool FoundStates::any_state() const {
  return std::ranges::any_of(files_, [](const File& file) { return file.part == 0 && file.kind == Kind::file; });
}

Result<std::set<std::string>> half_saved_files(FileLayer& files, const std::string& directory) {
  auto opened = files.open_directory(directory);
  if (!opened) return opened.error();
  std::set<std::string> found;
  for (;;) {
    const auto name = (*opened)->next();
    if (!name) return name.error();
    if (name->empty()) return found;
    const std::optional<OwnName> own = parse_name(*name);
    if (own && own->part >= state_parts) found.insert(std::string(name->substr(0, name->size() - part_suffixes[own->part % state_parts].size())));
  }
}

}  // namespace cairn
