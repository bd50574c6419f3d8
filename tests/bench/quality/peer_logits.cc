// peer_logits: llama.cpp's side of quality.py and export_check.py, over its public header. They compile it against a
// build of theirs; it is no part of Scion's build.
//
//   peer_logits MODEL tokenize < TEXT                 one line of token ids, special ones as the model says
//   peer_logits MODEL tokenize-each < TEXTS           a line for each text, which comes as "BYTES\n" and its bytes
//   peer_logits MODEL logits SEQUENCES OUT [EXPERTS]  as dump_logits
//   peer_logits MODEL plain-logits ...                the same with flash attention off: the same numbers, in theory
//   peer_logits MODEL greedy SEQUENCES TOKENS         per sequence a line of TOKENS ids, each with the difference of
//   the
//                                                     two highest logits that chose it: "id:gap id:gap ..."
//   peer_logits MODEL greedy-f32 SEQUENCES TOKENS     the same with K and V in fp32, and flash attention off
//
// As the benches run it: two threads, batches of 2048 in 512, 16-bit K and V, flash attention by its own choice.
#include <llama.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace {

struct Sequence {
  int first = 0;
  std::vector<llama_token> ids;
};

std::vector<Sequence> ReadSequences(const char* path) {
  std::ifstream file(path);
  std::vector<Sequence> sequences;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    Sequence s;
    words >> s.first;
    for (llama_token id; words >> id;) s.ids.push_back(id);
    sequences.push_back(s);
  }
  return sequences;
}

// One line of the text's ids.
void PrintIds(const llama_vocab* vocab, const std::string& text) {
  std::vector<llama_token> ids(text.size() + 8);
  const int count = llama_tokenize(vocab, text.data(), static_cast<int>(text.size()), ids.data(),
                                   static_cast<int>(ids.size()), true, true);
  for (int i = 0; i < count; ++i) std::printf("%d ", ids[static_cast<size_t>(i)]);
  std::printf("\n");
}

// The experts of every token that was computed, by layer, ascending: llama.cpp calls what it has chosen
// "ffn_moe_topk-LAYER".
struct Experts {
  std::map<int, std::vector<std::vector<int32_t>>> layers;

  static bool Watch(ggml_tensor* tensor, bool asks, void* experts) {
    constexpr std::string_view kName = "ffn_moe_topk-";
    const std::string_view name = ggml_get_name(tensor);
    if (!name.starts_with(kName)) return !asks;
    if (asks) return true;
    auto& tokens = static_cast<Experts*>(experts)->layers[std::atoi(name.data() + kName.size())];
    const char* data = static_cast<const char*>(tensor->data);
    for (int64_t t = 0; t < tensor->ne[1]; ++t) {
      std::vector<int32_t>& chosen = tokens.emplace_back();
      for (int64_t i = 0; i < tensor->ne[0]; ++i) {
        const size_t at = static_cast<size_t>(t) * tensor->nb[1] + static_cast<size_t>(i) * tensor->nb[0];
        chosen.push_back(*reinterpret_cast<const int32_t*>(data + at));
      }
      std::ranges::sort(chosen);
    }
    return true;
  }
};

template <class T>
void Write(std::ofstream& out, const T* values, size_t count) {
  out.write(reinterpret_cast<const char*>(values), static_cast<std::streamsize>(count * sizeof(T)));
}

// Computes ids from `position` on; logits of all of them can be asked for afterwards.
void Decode(llama_context* context, const std::vector<llama_token>& ids, int position) {
  llama_batch batch = llama_batch_init(static_cast<int>(ids.size()), 0, 1);
  for (size_t i = 0; i < ids.size(); ++i) {
    batch.token[i] = ids[i];
    batch.pos[i] = position + static_cast<int>(i);
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = 1;
  }
  batch.n_tokens = static_cast<int>(ids.size());
  if (llama_decode(context, batch) != 0) std::exit(1);
  llama_batch_free(batch);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const std::string verb = argv[2];
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (model == nullptr) return std::fprintf(stderr, "cannot load %s\n", argv[1]), 1;
  const llama_vocab* vocab = llama_model_get_vocab(model);
  const int vocab_size = llama_vocab_n_tokens(vocab);
  if (verb == "tokenize") {
    PrintIds(vocab, std::string((std::istreambuf_iterator<char>(std::cin)), {}));
    return 0;
  }
  if (verb == "tokenize-each") {
    for (size_t bytes; std::cin >> bytes && std::cin.get() == '\n';) {
      std::string text(bytes, '\0');
      std::cin.read(text.data(), static_cast<std::streamsize>(bytes));
      PrintIds(vocab, text);
    }
    return 0;
  }
  if (argc < 5) return 2;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = 2048;
  params.n_batch = 2048;
  params.n_ubatch = 512;
  params.n_threads = params.n_threads_batch = 2;
  const bool in_f32 = verb == "greedy-f32";
  if (in_f32) params.type_k = params.type_v = GGML_TYPE_F32;
  if (in_f32 || verb == "plain-logits") params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  const bool dumps = verb != "greedy" && !in_f32;
  Experts experts;
  std::ofstream experts_out;
  if (dumps && argc > 5) {
    experts_out.open(argv[5], std::ios::binary);
    params.cb_eval = Experts::Watch;
    params.cb_eval_user_data = &experts;
  }
  llama_context* context = llama_init_from_model(model, params);
  if (context == nullptr) return 1;
  std::ofstream out;
  if (dumps) out.open(argv[4], std::ios::binary);
  for (const Sequence& s : ReadSequences(argv[3])) {
    llama_memory_clear(llama_get_memory(context), true);
    experts.layers.clear();
    Decode(context, s.ids, 0);
    const int last = static_cast<int>(s.ids.size()) - 1;
    if (dumps) {
      for (int i = s.first; i <= last; ++i) {
        Write(out, llama_get_logits_ith(context, i), static_cast<size_t>(vocab_size));
        for (const auto& [layer, tokens] : experts.layers) {
          const std::vector<int32_t>& chosen = tokens[static_cast<size_t>(i)];
          Write(experts_out, chosen.data(), chosen.size());
        }
      }
      continue;
    }
    for (int i = 0, row = last; i < std::atoi(argv[4]); ++i, row = 0) {
      const float* logits = llama_get_logits_ith(context, row);
      const int best = static_cast<int>(std::max_element(logits, logits + vocab_size) - logits);
      float second = -1e30f;
      for (int v = 0; v < vocab_size; ++v) {
        if (v != best) second = std::max(second, logits[v]);
      }
      std::printf("%d:%.5f ", best, static_cast<double>(logits[best] - second));
      Decode(context, {best}, last + 1 + i);
    }
    std::printf("\n");
  }
  return 0;
}
