// make_tiny_model DIR: writes a tiny model with a lock for the end-to-end tests of moe-extract.

#include <cstdio>

#include "tests/support/tiny_model.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: make_tiny_model DIR\n");
    return 2;
  }
  scion::test::TinyModelOptions options;
  options.with_lock = true;
  scion::test::WriteTinyModel(scion::test::MakeTinyModel(options), argv[1]);
  return 0;
}
