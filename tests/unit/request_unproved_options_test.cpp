#include "request/unproved_options.hpp"

#include <gtest/gtest.h>

namespace cairn {
namespace {

TEST(UnprovedOptions, AreWhatIsReadWhenTheTaskBegins) {
  EXPECT_EQ(unproved_options(R"({"prompt":"x","temperature":0.5,"stream":true,"stop":["a"],"model":"m","tools":[{"a":1}],"seed":null,"response_fields":["x"],"n_probs":5})"), 0u);
  const std::uint64_t grammar = unproved_options(R"({"prompt":"x","grammar":"root ::= \"a\""})");
  EXPECT_NE(grammar, 0u);
  EXPECT_EQ(unproved_options(R"({"n_predict":4,"grammar":"root ::= \"a\"","prompt":"another one"})"), grammar);
  EXPECT_NE(unproved_options(R"({"prompt":"x","grammar":"root ::= ("})"), grammar);
  EXPECT_NE(unproved_options(R"({"prompt":"x","json_schema":{"type":"object"}})"), 0u);
  EXPECT_NE(unproved_options(R"({"prompt":"x","logit_bias":[[1,false]]})"), 0u);
  EXPECT_NE(unproved_options(R"({"prompt":"x","n_probs":"x"})"), 0u);
  for (const char* text : {"", "[]", "{", R"({"grammar":)"}) EXPECT_EQ(unproved_options(text), 0u) << text;
}

TEST(OptionTrials, NewOptionsAreTrustedOnceAcceptedOrAfterManyOthers) {
  OptionTrials trials;
  EXPECT_TRUE(trials.trusted(0));
  EXPECT_FALSE(trials.trusted(7));
  trials.answered(7, 200);
  EXPECT_TRUE(trials.trusted(7));
  for (int again = 0; again < 5; ++again) trials.answered(7, 200);
  EXPECT_FALSE(trials.trusted(8)) << "one says little of others";
  trials.answered(8, 503);
  EXPECT_FALSE(trials.trusted(8)) << "that was not about them";
  trials.answered(8, 200);
  trials.answered(9, 200);
  EXPECT_TRUE(trials.trusted(10)) << "a client that sends new ones each time";
  trials.answered(10, 400);
  EXPECT_FALSE(trials.trusted(10));
  EXPECT_TRUE(trials.trusted(9));
  trials.clear();
  EXPECT_FALSE(trials.trusted(9));
}

}  // namespace
}  // namespace cairn
