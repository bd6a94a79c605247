#include "request/recent_requests.hpp"

#include <gtest/gtest.h>

namespace cairn {
namespace {

RequestRecord answered(Source source, std::uint32_t planned, std::int64_t reused) {
  RequestRecord record;
  record.no_cache = NoCacheReason::used;
  record.source = source;
  record.planned_tokens = planned;
  record.reused_tokens = reused;
  return record;
}

TEST(RecentRequests, WhatPlansPromisedStandsBesideWhatTheyCameTo) {
  RecentRequests recent;
  recent.add(answered(Source::restore, 1000, 1000));
  recent.add(answered(Source::restore, 500, 20));
  recent.add(answered(Source::live, 0, 7));
  recent.add(answered(Source::live, 300, -1));  // no answer told
  RequestRecord passed = answered(Source::live, 300, 0);
  passed.no_cache = NoCacheReason::media;
  recent.add(passed);

  const PlanOutcome& restored = recent.outcome_of(Source::restore);
  EXPECT_EQ(restored.requests, 2u);
  EXPECT_EQ(restored.planned_tokens, 1500u);
  EXPECT_EQ(restored.reused_tokens, 1020u);
  EXPECT_EQ(restored.fell_short, 1u);
  const PlanOutcome& live = recent.outcome_of(Source::live);
  EXPECT_EQ(live.requests, 1u);
  EXPECT_EQ(live.reused_tokens, 7u);
  EXPECT_EQ(live.fell_short, 0u);
}

}  // namespace
}  // namespace cairn
