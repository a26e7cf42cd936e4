// Best fit with an ordered set of the batches that have room: the first entry from (length, 0) on is the fullest batch
// that takes the sample, and the earliest of those. O(log open batches) a sample.
#include "packing.h"

#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

namespace bertfast::data {

void best_fit(const int64_t* lengths, const int64_t* order, int64_t samples, int64_t budget, int64_t max_sequences,
              int64_t* batch_of) {
  std::set<std::pair<int64_t, int64_t>> open;  // (room left, batch)
  std::vector<int64_t> counts;
  for (int64_t i = 0; i < samples; ++i) {
    const int64_t sample = order[i];
    if (sample < 0 || sample >= samples) throw std::out_of_range("packing: order is no permutation of the samples");
    const int64_t length = lengths[sample];
    std::pair<int64_t, int64_t> place{budget, static_cast<int64_t>(counts.size())};
    if (const auto found = open.lower_bound({length, 0}); found != open.end()) {
      place = *found;
      open.erase(found);
    } else {
      counts.push_back(0);
    }
    batch_of[sample] = place.second;
    if (place.first > length && ++counts[place.second] < max_sequences) {
      open.insert({place.first - length, place.second});
    }
  }
}

}  // namespace bertfast::data
