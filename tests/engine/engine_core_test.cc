// The core beside a model whose layered steps end sooner than planned, as those that run late do.
#include "engine/engine_core.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <numeric>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "tests/support/tiny_model.h"

namespace scion {
namespace {

// Passes on all that is asked of it. The second step waits until all requests are there. If it is late, each row takes
// so long that no prompt passes all layers at once beside a decode, however busy the machine is; and no layered chunk
// passes a layer of even number after its first one.
class TimedModel final : public Model {
 public:
  TimedModel(Model& model, bool is_late) : model_(model), is_late_(is_late) {}
  void AllAreThere() {
    all_are_there_ = true;
    all_are_there_.notify_all();
  }
  const ModelSpec& spec() const override { return model_.spec(); }
  const ModelOptions& options() const override { return model_.options(); }
  std::vector<KvPlaneSpec> KvPlanes() const override { return model_.KvPlanes(); }
  uint64_t weight_bytes() const override { return model_.weight_bytes(); }
  uint64_t domain_weight_bytes(int domain) const override { return model_.domain_weight_bytes(domain); }
  uint64_t shared_weight_bytes() const override { return model_.shared_weight_bytes(); }
  uint64_t active_weight_bytes(int domain) const override { return model_.active_weight_bytes(domain); }
  LayersPassed Forward(const StepBatch& planned, KvCache& cache) override {
    if (steps_++ > 0) all_are_there_.wait(false);
    if (!is_late_) return model_.Forward(planned, cache);
    LayersPassed passed = model_.Forward({.token_ids = planned.token_ids,
                                          .chunks = planned.chunks,
                                          .logit_rows = planned.logit_rows,
                                          .num_layered_rows = planned.num_layered_rows,
                                          .layers = planned.layers,
                                          .goes_on = [](int layer) { return layer % 2 != 0; }},
                                         cache);
    const int num_layers = static_cast<int>(spec().layers.size());
    if (planned.layers.end == num_layers && passed.end < num_layers) ++steps_cut_from_end;
    if (planned.num_layered_rows > 0 && !planned.goes_on(num_layers - 1)) ++last_layers_refused;
    const int rows = static_cast<int>(planned.token_ids.size());
    const int layered = planned.num_layered_rows > 0 ? passed.end - planned.layers.begin : num_layers;
    const absl::Duration in_layers = rows * layered * kTimeOfARowInALayer;
    const absl::Duration in_others = (rows - planned.num_layered_rows) * (num_layers - layered) * kTimeOfARowInALayer;
    absl::SleepFor(in_layers + in_others);
    passed.layered_time += in_layers;
    passed.others_time += in_others;
    return passed;
  }
  void Logits(int first, int count, float* out) override { model_.Logits(first, count, out); }
  uint64_t ExpertTokens(int layer, int domain, int expert) const override {
    return model_.ExpertTokens(layer, domain, expert);
  }

  int steps_cut_from_end = 0;
  int last_layers_refused = 0;  // asked when the step had passed all layers

 private:
  static constexpr absl::Duration kTimeOfARowInALayer = absl::Microseconds(300);

  Model& model_;
  const bool is_late_;
  int steps_ = 0;
  std::atomic<bool> all_are_there_{false};
};

struct Result {
  std::vector<Event> events;
  int cached_prompt_tokens = 0;
};

// One that decodes for long, and once it does, a prompt that is scored and one that is answered.
std::vector<Result> Serve(TimedModel& model, ThreadPool& pool, absl::Duration target, uint64_t& prompt_tokens) {
  KvCache cache = *KvCache::Create(model.KvPlanes(), kernels::kKvBlockTokens, 64);
  EngineOptions options;
  options.itl_target = target;
  options.tier = kernels::Tier::kPortable;
  options.prefix_cache = false;
  EngineCore core(options, model, pool, cache);
  const auto add = [&](int tokens, int max_new_tokens, bool scores) {
    Request r;
    for (int i = 0; i < tokens; ++i) r.prompt.push_back(2 + i * 7 % 90);
    r.domain = 0;
    r.max_new_tokens = max_new_tokens;
    r.ignore_eos = true;
    r.score_prompt = scores;
    const int slots = max_new_tokens + tokens, max_tokens = tokens + max_new_tokens;
    const int blocks = cache.blocks_for(max_tokens);
    EXPECT_TRUE(core.ClaimQueue(tokens, RequestState::BytesFor(r, slots, max_tokens, blocks)).ok());
    auto state = std::make_shared<RequestState>(r, slots, max_tokens, blocks);
    EXPECT_TRUE(core.Add(state).ok());
    return state;
  };
  const auto drain = [](RequestState& state) {
    Result result;
    while (result.events.empty() || result.events.back().kind != Event::Kind::kFinished) {
      result.events.push_back(state.Next());
    }
    result.cached_prompt_tokens = state.cached_prompt_tokens();
    return result;
  };
  const std::shared_ptr<RequestState> decoding = add(4, 150, false);
  EXPECT_EQ(decoding->Next().kind, Event::Kind::kToken);
  const auto scored = add(70, 0, true), answered = add(90, 20, false), both = add(40, 3, true);
  model.AllAreThere();
  std::vector<Result> results = {drain(*scored), drain(*answered), drain(*both), drain(*decoding)};
  prompt_tokens = core.Stats().domains[0].prompt_tokens;
  return results;
}

// Tokens of all experts, one after another.
std::vector<uint64_t> ExpertTokens(const Model& model) {
  std::vector<uint64_t> tokens;
  for (int layer : model.spec().SparseLayers()) {
    for (int e = 0; e < model.spec().domains[0].num_experts; ++e) tokens.push_back(model.ExpertTokens(layer, 0, e));
  }
  return tokens;
}

TEST(EngineCore, AStepThatEndsBeforeTheLastLayerChangesNoAnswer) {
  test::TinyModelOptions o;
  o.max_position_embeddings = 512;
  const test::TempDir directory;
  test::WriteTinyModel(test::MakeTinyModel(o), directory.path());
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ThreadPool pool(2);
  absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(**checkpoint, {.max_step_rows = 512}, pool);
  ASSERT_TRUE(model.ok()) << model.status();
  uint64_t prompt_tokens = 0, prompt_tokens_late = 0;
  TimedModel timely(**model, false), late(**model, true);
  const std::vector<Result> want = Serve(timely, pool, absl::InfiniteDuration(), prompt_tokens);
  const std::vector<uint64_t> expert_tokens = ExpertTokens(**model);
  const std::vector<Result> got = Serve(late, pool, absl::Microseconds(1), prompt_tokens_late);
  EXPECT_GE(late.steps_cut_from_end, 2);
  EXPECT_EQ(late.last_layers_refused, 0) << "it costs prompts little, however late the step is";
  const std::vector<uint64_t> twice = ExpertTokens(**model);
  EXPECT_GT(std::accumulate(expert_tokens.begin(), expert_tokens.end(), uint64_t{0}), 204u);
  for (size_t i = 0; i < twice.size(); ++i) EXPECT_EQ(twice[i], 2 * expert_tokens[i]) << "expert " << i;
  EXPECT_EQ(prompt_tokens, 204u);
  EXPECT_EQ(prompt_tokens_late, 204u);
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i].cached_prompt_tokens, 0);
    ASSERT_EQ(got[i].events.size(), want[i].events.size()) << "request " << i;
    for (size_t e = 0; e < want[i].events.size(); ++e) {
      EXPECT_EQ(got[i].events[e].kind, want[i].events[e].kind);
      EXPECT_EQ(got[i].events[e].token_id, want[i].events[e].token_id);
      EXPECT_EQ(got[i].events[e].logprob, want[i].events[e].logprob) << "request " << i << " event " << e;
    }
  }
}

}  // namespace
}  // namespace scion
