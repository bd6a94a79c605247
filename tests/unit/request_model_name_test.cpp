#include "request/model_name.hpp"

#include <gtest/gtest.h>

namespace cairn {
namespace {

using Name = std::optional<std::string>;

TEST(ModelName, InAQuery) {
  EXPECT_EQ(model_in_query("/slots?model=a"), Name("a"));
  EXPECT_EQ(model_in_query("/slots?x=1&model=org%2Fa%20b+c&y=2"), Name("org/a b c"));
  EXPECT_EQ(model_in_query("/slots?model=a%2"), Name("a%2"));
  EXPECT_EQ(model_in_query("/slots?model=%zz"), Name("%zz"));
  for (const char* target : {"/slots", "/slots?", "/slots?model=", "/slots?models=a", "/slots?x=model=a", "/model=a"}) {
    EXPECT_EQ(model_in_query(target), std::nullopt) << target;
  }
}

TEST(ModelName, InABody) {
  const std::string_view json = "application/json";
  EXPECT_EQ(model_in_body(json, R"({"model":"a"})"), Name("a"));
  EXPECT_EQ(model_in_body("", R"( {"prompt":["model",{"model":"x"}],"model":"org/\u0061"} )"), Name("org/a"));
  // The request went to the first of `backends:`.
  EXPECT_EQ(model_in_body(json, "\xef\xbb\xbf{\"model\":\"a\"}"), Name("a"));
  // As llama-server's own JSON library has it.
  EXPECT_EQ(model_in_body(json, R"({"model":"a","model":"b"})"), Name("b"));
  EXPECT_EQ(model_in_body(json, R"({"model":"a","model":7})"), std::nullopt);
  for (const char* body : {"", "{}", "[]", "7", R"({"model":""})", R"({"model":null})", R"({"model":["a"]})", R"({"model":"a")",
                           R"({"messages":[{"model":"a"}]})"}) {
    EXPECT_EQ(model_in_body(json, body), std::nullopt) << body;
  }
}

TEST(ModelName, InAForm) {
  const std::string_view form = "multipart/form-data; boundary=B";
  const std::string file = "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"model\"\r\n\r\nRIFF\r\n";
  const std::string model = "--B\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n";
  EXPECT_EQ(model_in_body(form, file + model + "--B--\r\n"), Name("whisper"));
  EXPECT_EQ(model_in_body(form, model + file + "--B--\r\n"), Name("whisper"));
  EXPECT_EQ(model_in_body("Multipart/Form-Data; boundary=B", model + "--B--\r\n"), Name("whisper"));
  EXPECT_EQ(model_in_body(form, file + "--B--\r\n"), std::nullopt);
  EXPECT_EQ(model_in_body(form, "--B\r\nContent-Disposition: form-data; name=\"model\""), std::nullopt);
  EXPECT_EQ(model_in_body(form, ""), std::nullopt);
}

}  // namespace
}  // namespace cairn
