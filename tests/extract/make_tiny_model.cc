// make_tiny_model DIR [TYPE]: writes a tiny model for the end-to-end tests of moe-extract: Scion's, with a lock, or one
// of another model_type ("llama").

#include <cstdio>

#include "tests/support/tiny_model.h"

int main(int argc, char** argv) {
  if (argc != 2 && argc != 3) {
    std::fprintf(stderr, "usage: make_tiny_model DIR [TYPE]\n");
    return 2;
  }
  scion::test::TinyModelOptions options;
  if (argc == 3) options.model_type = argv[2];
  options.with_lock = argc == 2;
  scion::test::WriteTinyModel(scion::test::MakeTinyModel(options), argv[1]);
  return 0;
}
