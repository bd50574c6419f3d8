// make_tiny_model DIR [TYPE] [OPTION...]: writes a tiny random model for tests in other languages: Scion's, with a
// lock, or one of another model_type ("llama").

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "tests/support/tiny_model.h"

int main(int argc, char** argv) {
  scion::test::TinyModelOptions options;
  CLI::App app("make_tiny_model: a tiny random model", "make_tiny_model");
  std::string directory;
  std::vector<std::string> domains;
  bool untied = false, f32 = false;
  app.add_option("directory", directory)->required();
  app.add_option("type", options.model_type)->capture_default_str();
  app.add_option("--domains", domains, "such as alpha:3 beta:2")->capture_default_str();
  app.add_option("--experts-per-tok", options.num_experts_per_tok)->capture_default_str();
  app.add_option("--sparse-layers", options.sparse_layers)->capture_default_str();
  app.add_option("--heads", options.num_heads)->capture_default_str();
  app.add_option("--kv-heads", options.num_kv_heads)->capture_default_str();
  app.add_option("--seed", options.seed)->capture_default_str();
  app.add_flag("--route-weights", options.route_weights);
  app.add_flag("--untied", untied, "a head of its own");
  app.add_flag("--f32", f32);
  CLI11_PARSE(app, argc, argv);
  options.tie_word_embeddings = !untied;
  if (f32) options.dtype = scion::DType::kF32;
  if (!domains.empty()) options.domains.clear();
  for (const std::string& domain : domains) {
    const size_t colon = domain.find(':');
    options.domains.push_back({domain.substr(0, colon), std::stoi(domain.substr(colon + 1))});
    options.default_domain = options.domains[0].name;
  }
  options.with_lock = options.model_type == "scion";
  scion::test::WriteTinyModel(scion::test::MakeTinyModel(options), directory);
  return 0;
}
