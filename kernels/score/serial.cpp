// Portable C++: no intrinsics, any machine; the compiler vectorises it for whatever its baseline is.
#include "micro.h"

namespace cir {
namespace {

inline float half_to_float(uint16_t bits) {
    // The exponent is rebased by a multiplication, which also normalises subnormals.
    const uint32_t wide = (static_cast<uint32_t>(bits) & 0x7fffu) << 13;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    value *= 0x1p112f;
    uint32_t out;
    std::memcpy(&out, &value, sizeof out);
    if ((bits & 0x7c00u) == 0x7c00u) out |= 0x7f800000u;  // infinity and NaN
    out |= (static_cast<uint32_t>(bits) & 0x8000u) << 16;
    std::memcpy(&value, &out, sizeof value);
    return value;
}

struct Serial {
    struct Half {
        uint16_t bits;
    };
    static constexpr int kWidth = 8, kRows = 2, kTileVectors = 1;
    static constexpr int kMaxPairsWeighted = 2, kMaxPairsPlain = 4;
    static constexpr int kIntegerWidth = 8, kIntegerLanes = 8;
    struct V {
        float lane[kWidth];
    };
    struct I {
        int32_t lane[kWidth];
    };

    static V zero() { return V{}; }
    static V set1(float x) {
        V v;
        for (float& lane : v.lane) lane = x;
        return v;
    }
    static V mul(const V& a, const V& b) {
        V v;
        for (int i = 0; i < kWidth; ++i) v.lane[i] = a.lane[i] * b.lane[i];
        return v;
    }
    static V fma(const V& a, const V& b, const V& c) {
        V v;
        for (int i = 0; i < kWidth; ++i) v.lane[i] = a.lane[i] * b.lane[i] + c.lane[i];
        return v;
    }
    static void store(float* p, const V& v) { std::memcpy(p, v.lane, sizeof v.lane); }

    static float value(float x) { return x; }
    static float value(Half x) { return half_to_float(x.bits); }
    static float value(int8_t x) { return static_cast<float>(x); }
    template <class T>
    static V load(const T* p) {
        V v;
        for (int i = 0; i < kWidth; ++i) v.lane[i] = value(p[i]);
        return v;
    }
    template <class T>
    static V load_part(const T* p, int n) {
        V v{};
        for (int i = 0; i < n; ++i) v.lane[i] = value(p[i]);
        return v;
    }

    static void sum_rows(const V* v, float* out) {
        for (int r = 0; r < kRows; ++r) {
            const float* x = v[r].lane;
            out[r] = ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
        }
    }

    static void transpose(V* v) {
        for (int i = 0; i < kWidth; ++i) {
            for (int k = 0; k < i; ++k) {
                const float swapped = v[i].lane[k];
                v[i].lane[k] = v[k].lane[i];
                v[k].lane[i] = swapped;
            }
        }
    }

    struct D {
        double lane[8];
    };
    static D dzero() { return D{}; }
    static D dload(const double* p) {
        D v;
        for (int i = 0; i < 8; ++i) v.lane[i] = p[i];
        return v;
    }
    static D dload(const float* p) {
        D v;
        for (int i = 0; i < 8; ++i) v.lane[i] = p[i];
        return v;
    }
    static D dmul(const D& a, const D& b) {
        D v;
        for (int i = 0; i < 8; ++i) v.lane[i] = a.lane[i] * b.lane[i];
        return v;
    }
    static D dadd(const D& a, const D& b) {
        D v;
        for (int i = 0; i < 8; ++i) v.lane[i] = a.lane[i] + b.lane[i];
        return v;
    }
    static double dsum(const D& v) {
        const double* x = v.lane;
        return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
    }

    static I izero() { return I{}; }
    static I iload(const int16_t* p) {
        I v;
        for (int i = 0; i < kWidth; ++i) v.lane[i] = p[i];
        return v;
    }
    static I load16(const int8_t* p) {
        I v;
        for (int i = 0; i < kWidth; ++i) v.lane[i] = p[i];
        return v;
    }
    static I square16(const I& v) { return product(v, v); }
    static I madd(const I& sum, const I& a, const I& b) {
        I v = product(a, b);
        for (int i = 0; i < kWidth; ++i) v.lane[i] += sum.lane[i];
        return v;
    }
    static I product(const I& a, const I& b) {
        I v;
        for (int i = 0; i < kWidth; ++i) v.lane[i] = a.lane[i] * b.lane[i];
        return v;
    }
    static V to_float(const I& v) {
        V f;
        for (int i = 0; i < kWidth; ++i) f.lane[i] = static_cast<float>(v.lane[i]);
        return f;
    }

    using Words = I;
    static I add_words(const I& sum, const char* p) {
        uint32_t words[kWidth], sums[kWidth];
        std::memcpy(words, p, sizeof words);
        std::memcpy(sums, sum.lane, sizeof sums);
        for (int i = 0; i < kWidth; ++i) sums[i] += words[i];
        I v;
        std::memcpy(v.lane, sums, sizeof sums);
        return v;
    }
    static Words words(const I& v) { return v; }
};

constexpr Kernels kTable = kernels_of<Serial>("serial");
}  // namespace
const Kernels* const kSerial = &kTable;
}  // namespace cir
