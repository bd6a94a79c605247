#include "request/token_memo.hpp"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <cstdlib>
#include <iostream>
#include <functional>
#include <map>
#include <optional>
#include <random>

#include "backend/llama_api.hpp"
#include "unit/run_to_end.hpp"
#include "unit/scripted_upstream.hpp"

namespace cairn::test {
namespace {

namespace json = boost::json;

std::uint32_t chosen_seed() {
  const char* given = std::getenv("CAIRN_TEST_SEED");
  const auto seed = static_cast<std::uint32_t>(given ? std::strtoul(given, nullptr, 10) : std::random_device()());
  std::cout << "CAIRN_TEST_SEED=" << seed << std::endl;
  return seed;
}

struct Piece {
  Token id = 0;
  std::string bytes;
};
using Pieces = std::vector<Piece>;

// Splits before each space and each line end, then merges neighbouring bytes within a word by random ranks: local, as the
// tokenizers of language models are, and with tokens that are no whole characters.
class RandomBpe {
 public:
  explicit RandomBpe(std::uint32_t seed) : random_(seed) {
    for (int i = 0; i < 256; ++i) ids_[std::string(1, static_cast<char>(i))] = i;
  }

  Pieces operator()(std::string_view text) {
    Pieces pieces;
    for (std::size_t at = 0; at < text.size();) {
      std::size_t end = at + 1;
      while (end < text.size() && text[end] != ' ' && text[end] != '\n') ++end;
      const std::string word{text.substr(at, end - at)};
      const auto [known, fresh] = words_.try_emplace(word);
      if (fresh) merge(word, known->second);
      pieces.insert(pieces.end(), known->second.begin(), known->second.end());
      at = end;
    }
    return pieces;
  }

 private:
  void merge(std::string_view word, Pieces& pieces) {
    std::vector<std::string> parts;
    for (const char byte : word) parts.emplace_back(1, byte);
    for (;;) {
      std::size_t best = parts.size();
      std::uint32_t best_rank = never;
      for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
        const std::uint32_t rank = rank_of(parts[i], parts[i + 1]);
        if (rank < best_rank) {
          best_rank = rank;
          best = i;
        }
      }
      if (best == parts.size()) break;
      parts[best] += parts[best + 1];
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
    for (const std::string& part : parts) {
      const auto id = ids_.emplace(part, static_cast<Token>(ids_.size()));
      pieces.push_back(Piece{id.first->second, part});
    }
  }
  // Half of the pairs merge.
  std::uint32_t rank_of(const std::string& left, const std::string& right) {
    const auto [at, fresh] = ranks_.try_emplace({left, right}, 0);
    if (fresh) at->second = random_() % 2 == 0 && left.size() + right.size() <= 8 ? random_() % 1'000'000 : never;
    return at->second;
  }
  static constexpr std::uint32_t never = 0xffffffff;
  std::mt19937 random_;
  std::map<std::string, Token, std::less<>> ids_;
  std::map<std::pair<std::string, std::string>, std::uint32_t> ranks_;
  std::map<std::string, Pieces, std::less<>> words_;
};

bool is_utf8(std::string_view bytes) {
  std::size_t at = 0;
  while (at < bytes.size()) {
    const auto first = static_cast<unsigned char>(bytes[at]);
    const std::size_t length = first < 0x80 ? 1 : first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : first >= 0xc2 ? 2 : 0;
    if (length == 0 || at + length > bytes.size()) return false;
    for (std::size_t i = 1; i < length; ++i) {
      if ((static_cast<unsigned char>(bytes[at + i]) & 0xc0) != 0x80) return false;
    }
    at += length;
  }
  return true;
}

// As llama-server writes it: a piece that is no valid text comes as a list of bytes.
std::string answer_of(const Pieces& pieces) {
  json::array list;
  for (const Piece& piece : pieces) {
    json::object item;
    item["id"] = piece.id;
    if (is_utf8(piece.bytes)) {
      item["piece"] = piece.bytes;
    } else {
      json::array bytes;
      for (const char byte : piece.bytes) bytes.push_back(static_cast<unsigned char>(byte));
      item["piece"] = bytes;
    }
    list.push_back(item);
  }
  return json::serialize(json::object{{"tokens", list}});
}

class TokenMemoTest : public ::testing::Test {
 protected:
  TokenMemoTest() {
    upstream_.answer_with([this](const RequestHead& head, std::string_view body) -> Result<ScriptedUpstream::Reply> {
      EXPECT_EQ(head.target, "/tokenize");
      const json::value value = json::parse(json::string_view(body.data(), body.size()));
      EXPECT_TRUE(value.at("parse_special").as_bool());
      EXPECT_TRUE(value.at("with_pieces").as_bool());
      const std::string content{value.at("content").as_string()};
      EXPECT_TRUE(is_utf8(content));  // never cut within a character
      if (failing_) return upstream_error(ErrorCode::closed, "down");
      content_bytes_ += content.size();
      if (replaced_meanwhile_) memo_->reset();
      Pieces pieces = tokenizer_(content);
      if (value.at("add_special").as_bool() && begin_token_) pieces.insert(pieces.begin(), *begin_token_);
      ScriptedUpstream::Reply reply;
      reply.body = answer_of(pieces);
      return reply;
    });
  }
  Tokens tokenize(const std::string& text, bool add_special = false) {
    auto tokens = run_to_end(memo_->tokenize(text, add_special, cancel_));
    EXPECT_TRUE(tokens) << to_string(tokens.error());
    return tokens ? *tokens : Tokens{};
  }
  Tokens whole(const std::string& text, bool add_special = false) {
    Tokens tokens;
    if (add_special && begin_token_) tokens.push_back(begin_token_->id);
    for (const Piece& piece : tokenizer_(text)) tokens.push_back(piece.id);
    return tokens;
  }
  // Bytes sent to the tokenizer for this text.
  std::size_t cost(const std::string& text, bool add_special = false) {
    const std::size_t before = content_bytes_;
    EXPECT_EQ(tokenize(text, add_special), whole(text, add_special));
    return content_bytes_ - before;
  }
  static std::string prose(std::mt19937& random, std::size_t bytes) {
    static const std::vector<std::string> words{" the",  " cairn", " stones", "\n",      " päth",  " 漢字",      " \xf0\x9f\x98\x80",
                                                " marks", " way",   " back",   " 12345", "...",   " <|im_end|>", " über",  "  ", " x"};
    std::string text;
    while (text.size() < bytes) text += words[random() % words.size()];
    return text;
  }

  std::function<Pieces(std::string_view)> tokenizer_ = RandomBpe(7);
  std::optional<Piece> begin_token_;
  bool failing_ = false;
  bool replaced_meanwhile_ = false;
  std::size_t content_bytes_ = 0;
  ScriptedUpstream upstream_;
  LlamaApi api_{upstream_, ""};
  std::optional<TokenMemo> memo_{std::in_place, api_, 64u << 20};
  CancelSource cancel_;
};

TEST_F(TokenMemoTest, ARepeatedTextCostsNothing) {
  EXPECT_EQ(cost("hello world"), 11u);
  EXPECT_EQ(cost("hello world"), 0u);
  EXPECT_EQ(memo_->repeats(), 1u);
  EXPECT_EQ(cost("hello world", true), 11u);  // another answer, perhaps
  EXPECT_EQ(cost(""), 0u);
}

TEST_F(TokenMemoTest, AGrownTextCostsOnlyItsTail) {
  std::mt19937 random(chosen_seed());
  std::string text = prose(random, 40'000);
  cost(text);
  for (int turn = 0; turn < 10; ++turn) {
    text += prose(random, 500);
    EXPECT_LT(cost(text), 2000u) << turn;
  }
  EXPECT_EQ(memo_->tails(), 10u);
  EXPECT_EQ(memo_->whole_texts(), 1u);
}

TEST_F(TokenMemoTest, ATextThatLeavesInTheMiddleCostsWhatComesAfter) {
  std::mt19937 random(chosen_seed());
  const std::string text = prose(random, 40'000);
  cost(text);
  std::size_t cut = 30'000;
  while ((static_cast<unsigned char>(text[cut]) & 0xc0) == 0x80) ++cut;
  EXPECT_LT(cost(text.substr(0, cut) + prose(random, 3000)), 5000u);
  EXPECT_LT(cost(text.substr(0, cut)), 2000u);  // a rewind
}

TEST_F(TokenMemoTest, ShortTextsAreTokenizedWhole) {
  std::mt19937 random(chosen_seed());
  std::string text = prose(random, 2000);
  cost(text);
  text += prose(random, 100);
  EXPECT_EQ(cost(text), text.size());
}

TEST_F(TokenMemoTest, WithABeginToken) {
  std::mt19937 random(chosen_seed());
  for (const std::string& shown : {"<s>", ""}) {
    memo_.emplace(api_, 64u << 20);
    begin_token_ = Piece{500'000, shown};
    std::string text = prose(random, 20'000);
    cost(text, true);
    text += prose(random, 300);
    EXPECT_LT(cost(text, true), 2000u) << "'" << shown << "'";
  }
}

// Conversations that grow, branch, are edited and forgotten: always what the whole text gives.
TEST_F(TokenMemoTest, EqualsWholeTokenizationWhateverHappens) {
  const std::uint32_t seed = chosen_seed();
  std::mt19937 random(seed);
  std::uint64_t tails = 0;
  for (int world = 0; world < 2; ++world) {
    tokenizer_ = RandomBpe(random());
    memo_.emplace(api_, 64u << 20);
    std::vector<std::string> texts{prose(random, 9000)};
    for (int step = 0; step < 25; ++step) {
      std::string text = texts[random() % texts.size()];
      std::size_t cut = random() % 3 == 0 ? text.size() : random() % (text.size() + 1);
      while (cut < text.size() && (static_cast<unsigned char>(text[cut]) & 0xc0) == 0x80) ++cut;
      const std::string rest = random() % 4 == 0 ? text.substr(cut) : "";
      text = text.substr(0, cut) + prose(random, random() % 1500) + rest;
      if (text.size() < 5000) text += prose(random, 5000);
      const bool add_special = random() % 5 == 0;
      ASSERT_EQ(tokenize(text, add_special), whole(text, add_special)) << "world " << world << ", step " << step << ", CAIRN_TEST_SEED=" << seed;
      texts.push_back(text);
    }
    tails += memo_->tails();
  }
  EXPECT_GT(tails, 10u);
}

// "▁Hello": the pieces are longer than the text, so no place in the text can be told.
TEST_F(TokenMemoTest, ATokenizerThatPutsASpaceBeforeEveryText) {
  std::mt19937 random(chosen_seed());
  auto inner = RandomBpe(3);
  tokenizer_ = [inner](std::string_view text) mutable { return inner(" " + std::string(text)); };
  std::string text = prose(random, 10'000);
  for (int turn = 0; turn < 6; ++turn) {
    EXPECT_EQ(cost(text), text.size());
    text += prose(random, 200);
  }
  EXPECT_EQ(memo_->tails(), 0u);
}

// Ids depend on the text's length: never in step. It is tried three times, not for ever.
TEST_F(TokenMemoTest, ATokenizerThatNeverFallsInStepIsLeftAlone) {
  std::mt19937 random(chosen_seed());
  auto inner = RandomBpe(3);
  tokenizer_ = [inner](std::string_view text) mutable {
    Pieces pieces = inner(text);
    const Token salt = static_cast<Token>(text.size()) * 1000;
    for (Piece& piece : pieces) piece.id += salt;
    return pieces;
  };
  std::string text = prose(random, 10'000);
  int tried = 0;
  for (int turn = 0; turn < 8; ++turn) {
    const std::size_t spent = cost(text);
    if (spent > text.size()) ++tried;
    text += prose(random, 201);
  }
  EXPECT_EQ(tried, 3);
  EXPECT_EQ(memo_->whole_texts(), 8u);
}

TEST_F(TokenMemoTest, ASplitNeverBeginsWithinACharacter) {
  // One token a byte, and nothing but characters of three and four bytes.
  tokenizer_ = [](std::string_view text) {
    Pieces pieces;
    for (const char byte : text) pieces.push_back(Piece{static_cast<unsigned char>(byte), std::string(1, byte)});
    return pieces;
  };
  std::string text;
  while (text.size() < 12'000) text += "漢😀";
  cost(text);
  for (int turn = 0; turn < 7; ++turn) {
    text += turn % 2 == 0 ? "字" : "é";
    EXPECT_LT(cost(text), 200u);
  }
}

TEST_F(TokenMemoTest, DistrustEndsTheSplitting) {
  std::mt19937 random(chosen_seed());
  std::string text = prose(random, 10'000);
  cost(text);
  memo_->distrust();
  EXPECT_EQ(cost(text), text.size());
  text += prose(random, 100);
  EXPECT_EQ(cost(text), text.size());
}

TEST_F(TokenMemoTest, TroubleIsAnErrorAndNothingIsRemembered) {
  failing_ = true;
  auto tokens = run_to_end(memo_->tokenize("hello", false, cancel_));
  ASSERT_FALSE(tokens);
  EXPECT_EQ(tokens.error().code, ErrorCode::closed);
  failing_ = false;
  EXPECT_EQ(cost("hello"), 5u);
  std::mt19937 random(1);
  std::string text = prose(random, 10'000);
  cost(text);
  failing_ = true;
  EXPECT_FALSE(run_to_end(memo_->tokenize(text + " more", false, cancel_)));
  failing_ = false;
  EXPECT_LT(cost(text + " more"), 2000u);
  CancelSource left;
  left.cancel();
  EXPECT_EQ(run_to_end(memo_->tokenize("something new", false, left)).error().code, ErrorCode::cancelled);
}

// A prompt is tokenized while Cairn still finds out whether the backend is another one.
TEST_F(TokenMemoTest, WhatWasAskedBeforeAnotherBackendCameIsNotRemembered) {
  std::mt19937 random(chosen_seed());
  const std::string text = prose(random, 10'000);
  replaced_meanwhile_ = true;
  cost(text);
  replaced_meanwhile_ = false;
  EXPECT_EQ(cost(text), text.size());
  EXPECT_EQ(cost(text), 0u);
  replaced_meanwhile_ = true;
  const std::string longer = text + prose(random, 500);
  cost(longer);
  replaced_meanwhile_ = false;
  EXPECT_EQ(cost(longer), longer.size());
}

TEST_F(TokenMemoTest, TheOldestAreForgotten) {
  TokenMemo small(api_, 100'000);
  const auto calls_for = [&](const std::string& text) {
    const int before = upstream_.calls;
    EXPECT_TRUE(run_to_end(small.tokenize(text, false, cancel_)));
    return upstream_.calls - before;
  };
  const std::string a = "a" + std::string(3000, ' ');
  EXPECT_EQ(calls_for(a), 1);
  EXPECT_EQ(calls_for(std::string(90'000, 'x')), 1);  // too big to keep
  EXPECT_EQ(calls_for(a), 0);
  for (int i = 0; i < 20; ++i) calls_for(std::to_string(i) + std::string(3000, ' '));
  EXPECT_EQ(calls_for(a), 1);
}

TEST_F(TokenMemoTest, TokensInTheTail) {
  tokenizer_ = [](std::string_view text) {  // three bytes a token
    Pieces pieces;
    for (std::size_t at = 0; at < text.size(); at += 3) pieces.push_back(Piece{static_cast<Token>(at), std::string(text.substr(at, 3))});
    return pieces;
  };
  const std::string text = "abcdefghij";  // abc def ghi j
  EXPECT_EQ(memo_->tokens_in_tail(text, 1), 0u);
  tokenize(text);
  EXPECT_EQ(memo_->tokens_in_tail(text, 0), 0u);
  EXPECT_EQ(memo_->tokens_in_tail(text, 1), 1u);
  EXPECT_EQ(memo_->tokens_in_tail(text, 2), 2u);  // half a token counts
  EXPECT_EQ(memo_->tokens_in_tail(text, 4), 2u);
  EXPECT_EQ(memo_->tokens_in_tail(text, 10), 4u);
  EXPECT_EQ(memo_->tokens_in_tail("another one", 1), 0u);
}

}  // namespace
}  // namespace cairn::test
