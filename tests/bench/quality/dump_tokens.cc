// dump_tokens MODEL < TEXTS: Scion's token ids of texts, for export_check.py.
//
// Each text comes as "BYTES\n" and its bytes; each gives a line of ids, special tokens as the model says.
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "engine/model/checkpoint.h"
#include "engine/text/tokenizer.h"

namespace scion {
namespace {

absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::filesystem::path& model) {
  if (std::filesystem::is_directory(model)) return Tokenizer::Load(model);
  const absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(model);
  if (!checkpoint.ok()) return checkpoint.status();
  if ((*checkpoint)->vocabulary() == nullptr) return absl::NotFoundError("no tokenizer");
  return Tokenizer::FromGguf(*(*checkpoint)->vocabulary());
}

int Main(const std::filesystem::path& model) {
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Load(model);
  if (!tokenizer.ok()) {
    return std::fprintf(stderr, "%s: %s\n", model.c_str(), tokenizer.status().ToString().c_str()), 1;
  }
  for (size_t bytes; std::cin >> bytes && std::cin.get() == '\n';) {
    std::string text(bytes, '\0');
    std::cin.read(text.data(), static_cast<std::streamsize>(bytes));
    std::vector<int32_t> ids;
    (*tokenizer)->Encode(text, {.parse_special = true, .add_special = true}, ids);
    for (int32_t id : ids) std::printf("%d ", id);
    std::printf("\n");
  }
  return 0;
}

}  // namespace
}  // namespace scion

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: dump_tokens MODEL < TEXTS\n"), 2;
  return scion::Main(argv[1]);
}
