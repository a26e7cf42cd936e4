// Chooses, once per process, which build of the kernels the processor gets. Every *_kernels.cpp is compiled four
// times, with BERTFAST_ISA = avx512bf16, avx512, avx2 or portable, and exports one function table per build; nothing
// outside these tables is compiled for more than the baseline, so a processor without AVX-512 never meets such an
// instruction.
#pragma once

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace bertfast {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

inline Isa detect_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    // Every processor with the one has the other; the build uses both.
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") ? Isa::kAvx512Bf16
                                                                                        : Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return Isa::kAvx2;
  }
#endif
  return Isa::kPortable;
}

inline const char* isa_name(Isa isa) {
  constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512bf16"};
  return kNames[static_cast<int>(isa)];
}

// The detected level, lowered (never raised) by BERTFAST_CPU_ISA=avx512|avx2|portable, which tests use to reach every
// build.
inline Isa chosen_isa() {
  static const Isa isa = [] {
    const Isa best = detect_isa();
    const char* wish = std::getenv("BERTFAST_CPU_ISA");
    for (Isa lower : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
      if (wish != nullptr && lower < best && std::strcmp(wish, isa_name(lower)) == 0) return lower;
    }
    return best;
  }();
  return isa;
}

// Whether bfloat16 is multiplied two terms at a time by the processor's instruction for it, rather than widened to
// float and multiplied as that. Measured: twice float's rate on AMD Zen 4, and 0.65 of it on an Intel Xeon with
// AVX512-BF16 (and its AMX hidden from a virtual machine). BERTFAST_BFLOAT16=pairs|float decides otherwise, where the
// build can.
inline bool multiplies_pairs() {
  static const bool chosen = [] {
    if (chosen_isa() != Isa::kAvx512Bf16) return false;
    const char* wish = std::getenv("BERTFAST_BFLOAT16");
    if (wish != nullptr && std::strcmp(wish, "pairs") == 0) return true;
    if (wish != nullptr && std::strcmp(wish, "float") == 0) return false;
#if defined(__x86_64__)
    return !__builtin_cpu_is("intel");
#else
    return false;
#endif
  }();
  return chosen;
}

// One table of T for each build; `T` is an op's struct of function pointers. On processors that are not x86 only the
// portable build exists.
template <class T>
const T& choose(const T& avx512bf16, const T& avx512, const T& avx2, const T& portable) {
  switch (chosen_isa()) {
    case Isa::kAvx512Bf16:
      return avx512bf16;
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx2:
      return avx2;
    default:
      return portable;
  }
}

}  // namespace bertfast

// Declares the tables of an op (in its *_kernels.h) and the chooser `NAME_kernels()`.
#define BERTFAST_DECLARE_KERNELS(Table, name)                                                           \
  extern const Table name##_avx512bf16, name##_avx512, name##_avx2, name##_portable;                    \
  inline const Table& name##_kernels() {                                                                \
    static const Table& table = choose(name##_avx512bf16, name##_avx512, name##_avx2, name##_portable); \
    return table;                                                                                       \
  }

// Names the table that this build of a *_kernels.cpp defines: `const Table BERTFAST_TABLE(name) = {...};`
#define BERTFAST_JOIN2(a, b) a##_##b
#define BERTFAST_JOIN(a, b) BERTFAST_JOIN2(a, b)
#define BERTFAST_TABLE(name) BERTFAST_JOIN(name, BERTFAST_ISA)
