// Which instruction sets were compiled in, and which of them this machine can run.
#include "score.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#ifdef CIR_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#define CIR_X86 1
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace cir {
namespace {

#ifdef CIR_X86
struct Features {
    bool avx2 = false, avx_vnni = false, avx512 = false, vnni = false, amx = false;

    Features() {
        unsigned a, b, c, d;
        if (!__get_cpuid(1, &a, &b, &c, &d)) return;
        const bool osxsave = c >> 27 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
        if (!osxsave) return;
        // The operating system must save the registers too.
        unsigned low, high;
        __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        const bool ymm = (low & 0x6) == 0x6, zmm = (low & 0xe6) == 0xe6;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
        avx2 = ymm && fma && f16c && (b >> 5 & 1);
        avx512 = avx2 && zmm && (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);  // F DQ BW VL
        vnni = avx512 && (c >> 11 & 1);
        amx = vnni && (low >> 17 & 3) == 3 && (d >> 24 & 1) && (d >> 25 & 1) && has_tiles();
        if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) avx_vnni = avx2 && (a >> 4 & 1);
    }

private:
    // Eight tiles of 16 rows of 64 bytes, and Linux lets this process use them. It is asked once: the permission goes to all
    // threads and to forked children. From then on Linux wants alternative stacks for signals large enough to save the tiles
    // too, and where one is too small already it refuses.
    static bool has_tiles() {
#ifdef CIR_HAS_AMX
        unsigned a, b, c, d;
        if (!__get_cpuid_count(0x1d, 1, &a, &b, &c, &d) || a >> 16 != 1024 || b != (8 << 16 | 64) || (c & 0xffff) != 16) {
            return false;
        }
        constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
        return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
        return false;
#endif
    }
};
#elif defined(__aarch64__)
bool has_dot_products() {
#if defined(__linux__)
    constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP
    return getauxval(AT_HWCAP) & kDotProducts;
#elif defined(__ARM_FEATURE_DOTPROD)
    return true;  // so the target has it: every Apple processor of these machines
#else
    return false;
#endif
}
#endif

}  // namespace

std::vector<const Kernels*> available_kernels() {
    std::vector<const Kernels*> out;
#ifdef CIR_X86
    static const Features features;
#ifdef CIR_HAS_AMX
    if (features.amx) out.push_back(kAvx512Amx);
#endif
    if (features.vnni) out.push_back(kAvx512Vnni);
    if (features.avx512) out.push_back(kAvx512);
#ifdef CIR_HAS_AVXVNNI
    if (features.avx_vnni) out.push_back(kAvxVnni);
#endif
    if (features.avx2) out.push_back(kAvx2);
#elif defined(__aarch64__)
    if (has_dot_products()) out.push_back(kNeonDot);
    out.push_back(kNeon);
#endif
    out.push_back(kSerial);
    return out;
}

const Kernels* kernels_by_name(const std::string& name) {
    for (const Kernels* kernels : available_kernels()) {
        if (kernels->name == name) return kernels;
    }
    return nullptr;
}

}  // namespace cir
