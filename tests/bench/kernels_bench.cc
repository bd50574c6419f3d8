// Kernel speed beside the machine's own limits, in one run: memory read bandwidth, and the multiply-add peak of each
// tier.
//
//   decode   matmul of few rows over matrices larger than the caches; bytes/s of packed weights
//   prefill  matmul of 512 rows; FLOP/s
//   attend   one token over a context; bytes/s of K and V
//
// The thread count is the last number of a name; each thread has its own share of the matrices.
#include <benchmark/benchmark.h>

#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/base/aligned_buffer.h"
#include "engine/base/thread_pool.h"
#include "engine/kernels/kernels.h"
#include "tests/bench/machine_limits.h"

namespace scion::kernels {
namespace {

constexpr size_t kStreamBytes = size_t{192} << 20;  // per thread, far beyond the caches

AlignedBuffer RandomBuffer(size_t bytes) {
  AlignedBuffer b = AlignedBuffer::Create(bytes, "a benchmark").value();
  uint32_t state = 1;
  for (size_t i = 0; i < bytes / 4; ++i) {  // fp32 (and pairs of bf16 and fp16) around 1, and arbitrary codes
    state = state * 1664525u + 1013904223u;
    b.as<uint32_t>()[i] = 0x3f003f00u | (state >> 9 & 0x00ff00ffu);
  }
  return b;
}

void ReadBandwidth(benchmark::State& state, int threads) {
  ThreadPool pool(threads);
  for (auto _ : state) state.counters["bytes_per_second"] = bench::ReadBandwidth(pool);
}

void PeakFlops(benchmark::State& state, Tier tier, int threads) {
  ThreadPool pool(threads);
  for (auto _ : state) state.counters["FLOP/s"] = bench::PeakFlops(pool, tier);
}

// Matrices of [kOut, in_features], as many as fill `bytes`; pairs: two and two with their panels in turn, as gate and
// up.
struct Matrices {
  AlignedBuffer buffer;
  std::vector<PackedMatrix> all;

  Matrices(WeightType type, int out_features, int in_features, size_t bytes, bool pairs, bool past_caches) {
    const size_t one = PackedBytes(type, out_features, in_features);
    const size_t count = std::max(size_t{2}, bytes / one / 2 * 2);
    buffer = RandomBuffer(one * count);
    for (size_t i = 0; i < count; ++i) {
      const size_t at = pairs ? i / 2 * 2 * one + i % 2 * PackedPanelBytes(type, in_features) : i * one;
      all.push_back({.data = buffer.data() + at,
                     .out_features = out_features,
                     .in_features = in_features,
                     .type = type,
                     .panel_stride = pairs ? 2 : 1,
                     .past_caches = past_caches});
    }
  }
};

struct Activations {
  AlignedBuffer buffer;

  Activations(const KernelTable& k, WeightType type, int rows, int in_features) {
    const std::vector<float> x(static_cast<size_t>(rows * in_features), 0.01f);
    buffer = RandomBuffer(static_cast<size_t>(rows) * k.activation_row_bytes(k.activation_form(type), in_features));
    k.prepare_activations(k.activation_form(type), x.data(), static_cast<size_t>(in_features), nullptr, rows,
                          in_features, buffer.data());
  }
};

void Decode(benchmark::State& state, const KernelTable& k, WeightType type, int rows, bool swiglu) {
  constexpr int kIn = 1024, kOut = 2816;
  const Matrices m(type, kOut, kIn, kStreamBytes, swiglu, true);
  const Activations a(k, type, rows, kIn);
  const ActivationForm form = k.activation_form(type);
  std::vector<float> y(static_cast<size_t>(rows * kOut));
  AlignedBuffer hidden = RandomBuffer(static_cast<size_t>(rows) * k.activation_row_bytes(form, kOut));
  for (auto _ : state) {
    for (size_t i = 0; i + 1 < m.all.size(); i += 2) {
      if (swiglu) {
        k.matmul_swiglu(m.all[i], m.all[i + 1], a.buffer.data(), rows, 0, NumPanels(kOut), form, hidden.data());
      } else {
        k.matmul(m.all[i], a.buffer.data(), rows, 0, NumPanels(kOut), y.data(), kOut, StoreTo::kCache);
        k.matmul(m.all[i + 1], a.buffer.data(), rows, 0, NumPanels(kOut), y.data(), kOut, StoreTo::kCache);
      }
    }
    benchmark::DoNotOptimize(y.data());
  }
  const size_t bytes = m.all.size() / 2 * 2 * PackedBytes(type, kOut, kIn);
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * bytes));
}

void Prefill(benchmark::State& state, const KernelTable& k, WeightType type, int in_features, bool swiglu) {
  constexpr int kRows = 512, kOut = 1024;
  const Matrices m(type, kOut, in_features, 2 * PackedBytes(type, kOut, in_features), swiglu, false);
  const Activations a(k, type, kRows, in_features);
  const ActivationForm form = k.activation_form(type);
  std::vector<float> y(kRows * kOut);
  AlignedBuffer hidden = RandomBuffer(kRows * k.activation_row_bytes(form, kOut));
  for (auto _ : state) {
    for (int p = 0; p < NumPanels(kOut); p += 4) {  // a task's share
      if (swiglu) {
        k.matmul_swiglu(m.all[0], m.all[1], a.buffer.data(), kRows, p, p + 4, form, hidden.data());
      } else {
        k.matmul(m.all[0], a.buffer.data(), kRows, p, p + 4, y.data(), kOut, StoreTo::kCache);
      }
    }
    benchmark::DoNotOptimize(y.data());
  }
  state.counters["FLOP/s"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * 2.0 * kRows * kOut * in_features * (swiglu ? 2 : 1),
                         benchmark::Counter::kIsRate);
}

void Attend(benchmark::State& state, const KernelTable& k, KvType type, int group, int head_dim, int context) {
  const size_t block_bytes = static_cast<size_t>(head_dim * kKvBlockTokens) * KvTypeBytes(type);
  const int blocks = context / kKvBlockTokens;
  const AlignedBuffer keys = RandomBuffer(block_bytes * static_cast<size_t>(blocks));
  const AlignedBuffer values = RandomBuffer(block_bytes * static_cast<size_t>(blocks));
  const KvPlanes planes{keys.data(), values.data(), block_bytes, 1, head_dim, type};
  std::vector<int32_t> table(static_cast<size_t>(blocks));
  std::iota(table.begin(), table.end(), 0);
  const std::vector<float> q(static_cast<size_t>(group * head_dim), 0.01f);
  std::vector<float> out(q.size());
  for (auto _ : state) {
    k.attend(planes, table.data(), context - 1, 1, 0, 1, group, q.data(), 0, 0.1f, out.data(), 0);
    benchmark::DoNotOptimize(out.data());
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * 2 * block_bytes * static_cast<size_t>(blocks)));
  state.counters["FLOP/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * 4.0 * group * head_dim * context, benchmark::Counter::kIsRate);
}

void Logits(benchmark::State& state, const KernelTable& k, bool argmax) {
  constexpr int kVocab = 151936;
  const AlignedBuffer x = RandomBuffer(kVocab * sizeof(float));
  for (auto _ : state) {
    if (argmax) {
      benchmark::DoNotOptimize(k.argmax(x.as<float>(), kVocab));
    } else {
      benchmark::DoNotOptimize(k.log_sum_exp(x.as<float>(), kVocab));
    }
  }
  state.SetItemsProcessed(state.iterations() * kVocab);
}

void RegisterAll() {
  for (int threads : {1, 2}) {
    const std::string suffix = "/threads:" + std::to_string(threads);
    benchmark::RegisterBenchmark(("read_bandwidth" + suffix).c_str(), [=](benchmark::State& s) {
      ReadBandwidth(s, threads);
    })->Iterations(1);
    for (Tier tier : SupportedTiers()) {
      benchmark::RegisterBenchmark((std::string(TierName(tier)) + "/peak" + suffix).c_str(), [=](benchmark::State& s) {
        PeakFlops(s, tier, threads);
      })->Iterations(1);
    }
  }
  for (Tier tier : SupportedTiers()) {
    const KernelTable& k = GetKernels(tier);
    const std::string name(TierName(tier));
    for (WeightType type :
         {WeightType::kBF16, WeightType::kF32, WeightType::kF16, WeightType::kQ8, WeightType::kQ8Min,
          WeightType::kQ8Super, WeightType::kQ4, WeightType::kQ4Min, WeightType::kQ4Super, WeightType::kQ6}) {
      std::string weights = "/";
      weights += WeightTypeName(type);
      for (bool swiglu : {false, true}) {
        const std::string op = swiglu ? "/swiglu" : "/matmul";
        for (int rows : {1, 2, 4, 8, 16}) {
          benchmark::RegisterBenchmark((name + op + weights + "/decode_rows:" + std::to_string(rows)).c_str(),
                                       [=, &k](benchmark::State& s) { Decode(s, k, type, rows, swiglu); })
              ->ThreadRange(1, 2)
              ->UseRealTime();
        }
        for (int in_features : {1024, 2816}) {
          benchmark::RegisterBenchmark((name + op + weights + "/prefill_k:" + std::to_string(in_features)).c_str(),
                                       [=, &k](benchmark::State& s) { Prefill(s, k, type, in_features, swiglu); })
              ->ThreadRange(1, 2)
              ->UseRealTime();
        }
      }
    }
    for (KvType type : kAllKvTypes) {
      for (int group : {1, 4, 8}) {
        const std::string kv = "/attend/" + std::string(KvTypeName(type));
        benchmark::RegisterBenchmark((name + kv + "/group:" + std::to_string(group)).c_str(), [=, &k](
                                                                                                  benchmark::State& s) {
          Attend(s, k, type, group, 64, 1024);
        })->UseRealTime();
      }
    }
    for (bool argmax : {false, true}) {
      benchmark::RegisterBenchmark((name + (argmax ? "/argmax" : "/log_sum_exp")).c_str(),
                                   [=, &k](benchmark::State& s) { Logits(s, k, argmax); });
    }
  }
}

}  // namespace
}  // namespace scion::kernels

int main(int argc, char** argv) {
  scion::kernels::RegisterAll();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
