#include "extract/balanced_route.h"

#include <algorithm>
#include <numeric>
#include <queue>
#include <random>
#include <tuple>
#include <utility>

namespace scion {
namespace {

// What decides which expert is next: mass, then tokens, then chance.
using Load = std::tuple<uint64_t, uint64_t, uint64_t, int32_t>;
using LeastLoaded = std::priority_queue<Load, std::vector<Load>, std::greater<>>;

// A generator for each table, so that tables don't depend on how many there are before.
std::mt19937_64 MakeGenerator(uint64_t seed, uint64_t stream) {
  std::seed_seq sequence{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(stream),
                         static_cast<uint32_t>(stream >> 32)};
  return std::mt19937_64(sequence);
}

}  // namespace

BalancedRoute MakeBalancedRoute(std::span<const uint64_t> mass, int vocab_size, int num_experts, uint64_t seed,
                                uint64_t stream) {
  std::mt19937_64 random = MakeGenerator(seed, stream);
  const size_t vocab = static_cast<size_t>(vocab_size), experts = static_cast<size_t>(num_experts);
  const auto mass_of = [&](int32_t token) { return mass.empty() ? 0 : mass[static_cast<size_t>(token)]; };
  std::vector<std::pair<uint64_t, int32_t>> order(vocab);  // key, token; heavy tokens first
  for (size_t t = 0; t < vocab; ++t) {
    constexpr uint64_t kMaxMass = uint64_t{1} << 50;
    const uint64_t jitter = 1024 + random() % 1024;
    order[t] = {std::min(mass_of(static_cast<int32_t>(t)), kMaxMass) * jitter, static_cast<int32_t>(t)};
  }
  for (size_t i = vocab; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  std::ranges::stable_sort(order, std::ranges::greater(), &std::pair<uint64_t, int32_t>::first);

  BalancedRoute route{.expert_of_token = std::vector<int32_t>(vocab)};
  std::vector<uint64_t> loads(experts), tokens(experts);
  LeastLoaded queue;
  const auto push = [&](int32_t expert, bool by_mass) {
    const size_t e = static_cast<size_t>(expert);
    queue.emplace(by_mass ? loads[e] : 0, tokens[e], random(), expert);
  };
  const auto assign = [&](std::span<const std::pair<uint64_t, int32_t>> part, bool by_mass) {
    queue = {};
    for (size_t e = 0; e < experts; ++e) push(static_cast<int32_t>(e), by_mass);
    for (const auto& [key, token] : part) {
      const int32_t expert = std::get<int32_t>(queue.top());
      queue.pop();
      route.expert_of_token[static_cast<size_t>(token)] = expert;
      loads[static_cast<size_t>(expert)] += mass_of(token);
      ++tokens[static_cast<size_t>(expert)];
      push(expert, by_mass);
    }
  };
  const auto first_without = std::ranges::partition_point(order, [](const auto& entry) { return entry.first > 0; });
  const size_t with_mass = static_cast<size_t>(first_without - order.begin());
  assign(std::span(order).first(with_mass), /*by_mass=*/true);
  assign(std::span(order).subspan(with_mass), /*by_mass=*/false);

  const std::vector<uint64_t>& shares = mass.empty() ? tokens : loads;
  const double total = static_cast<double>(std::accumulate(shares.begin(), shares.end(), uint64_t{0}));
  route.smallest_share = static_cast<double>(std::ranges::min(shares)) / total;
  route.largest_share = static_cast<double>(std::ranges::max(shares)) / total;
  return route;
}

}  // namespace scion
