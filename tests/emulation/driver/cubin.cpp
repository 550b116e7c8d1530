// Images of kernels: the container that nvcc writes, the code inside for this GPU, and what the code says of itself.
//
// A container ("fatbin") is a header and entries, one for each architecture, mostly compressed with Zstandard. Where
// libzstd.so.1 is there the code is unpacked and read: which kernels it has, the size of their arguments, their
// registers and threads. They must be the machine's own, or the container was built from other sources.
#include <algorithm>
#include <cstring>
#include <string>

#include <dlfcn.h>

#include "state.h"

extern "C" bool machine_describe(const char* name, size_t* argument_bytes, int* threads);
extern "C" const char* machine_kernel(int index);

namespace driver {
namespace {

struct FatHeader {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t bytes;
};
struct FatEntry {
    uint16_t kind, version;
    uint32_t header_bytes;
    uint64_t bytes;
    uint32_t packed_bytes, options;
    uint16_t minor, major;  // of PTX, or of the code's format
    uint32_t architecture, name_offset, name_bytes;
    uint64_t flags, zero, unpacked_bytes;
};
constexpr uint32_t kFatMagic = 0xba55ed50;
constexpr int kPtx = 1, kElf = 2;
constexpr uint64_t kZstandard = 0x8000, kLz4 = 0x2000;

std::string unpacked(const FatEntry& entry, const unsigned char* payload) {
    if ((entry.flags & (kZstandard | kLz4)) == 0) return {reinterpret_cast<const char*>(payload), entry.bytes};
    using Decompress = size_t (*)(void*, size_t, const void*, size_t);
    static const auto decompress = [] {
        void* library = dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);
        return library == nullptr ? nullptr : reinterpret_cast<Decompress>(dlsym(library, "ZSTD_decompress"));
    }();
    if ((entry.flags & kZstandard) == 0 || decompress == nullptr) return "";
    std::string out(entry.unpacked_bytes, '\0');
    const size_t got = decompress(out.data(), out.size(), payload, entry.packed_bytes);
    return got == out.size() ? out : "?";
}

struct ElfHeader {
    unsigned char magic[16];
    uint16_t type, machine;
    uint32_t version;
    uint64_t entry, program_headers, section_headers;
    uint32_t flags;
    uint16_t size, program_size, programs, section_size, sections, names;
};
struct ElfSection {
    uint32_t name, type;
    uint64_t flags, address, offset, size;
    uint32_t link, info;
    uint64_t alignment, entry_size;
};

template <class T>
T read_at(const std::string& from, size_t at) {
    T value{};
    if (at + sizeof value <= from.size()) std::memcpy(&value, from.data() + at, sizeof value);
    return value;
}

struct ElfSymbol {
    uint32_t name;
    uint8_t info, other;
    uint16_t section;
    uint64_t value, size;
};

// The registers of all kernels, in the section .nv.info.
void read_registers(const std::string& elf, const ElfSection& section, const ElfSection& symbols, size_t names,
                    std::map<std::string, KernelFacts>& kernels) {
    for (size_t at = section.offset; at + 4 <= section.offset + section.size;) {
        const auto format = read_at<uint8_t>(elf, at), what = read_at<uint8_t>(elf, at + 1);
        const auto value = read_at<uint16_t>(elf, at + 2);
        if (what == 0x2f && format == 4) {  // EIATTR_REGCOUNT: a symbol and a number
            const auto symbol = read_at<ElfSymbol>(elf, symbols.offset + read_at<uint32_t>(elf, at + 4) * sizeof(ElfSymbol));
            kernels[elf.c_str() + std::min<size_t>(names + symbol.name, elf.size())].registers = read_at<int32_t>(elf, at + 8);
        }
        at += 4 + (format == 4 ? value : 0u);
    }
}

// The attributes in a section .nv.info.<kernel>.
void read_attributes(const std::string& elf, const ElfSection& section, KernelFacts& facts) {
    for (size_t at = section.offset; at + 4 <= section.offset + section.size;) {
        const auto format = read_at<uint8_t>(elf, at), what = read_at<uint8_t>(elf, at + 1);
        const auto value = read_at<uint16_t>(elf, at + 2);
        if (what == 0x19) facts.argument_bytes = value;                                      // EIATTR_CBANK_PARAM_SIZE
        if (what == 0x05 && format == 4) facts.threads = read_at<int32_t>(elf, at + 4);      // EIATTR_MAX_THREADS
        at += 4 + (format == 4 ? value : 0u);
    }
}

Status read_elf(const std::string& elf, std::map<std::string, KernelFacts>& kernels) {
    const auto header = read_at<ElfHeader>(elf, 0);
    if (std::memcmp(header.magic, "\177ELF", 4) != 0 || header.machine != 190) return kInvalidImage;
    const auto section = [&](size_t i) { return read_at<ElfSection>(elf, header.section_headers + i * header.section_size); };
    const size_t names = section(header.names).offset;
    ElfSection symbols{}, registers{};
    for (size_t i = 0; i < header.sections; ++i) {
        const ElfSection found = section(i);
        const std::string name = elf.c_str() + std::min<size_t>(names + found.name, elf.size());
        if (name.rfind(".text.", 0) == 0) {
            KernelFacts& facts = kernels[name.substr(6)];
            facts.name = name.substr(6);
        } else if (found.type == 2) {
            symbols = found;
        } else if (name == ".nv.info") {
            registers = found;
        } else if (name.rfind(".nv.info.", 0) == 0) {
            read_attributes(elf, found, kernels[name.substr(9)]);
        } else if (name.rfind(".nv.shared.", 0) == 0) {
            // From Hopper on it counts what the system takes, which no limit of a block does.
            const size_t of_system = gpu().architecture >= 90 ? 1024 : 0;
            kernels[name.substr(11)].shared = found.size - std::min<size_t>(found.size, of_system);
        }
    }
    if (symbols.size > 0) read_registers(elf, registers, symbols, section(symbols.link).offset, kernels);
    for (auto it = kernels.begin(); it != kernels.end();) it = it->second.name.empty() ? kernels.erase(it) : std::next(it);
    return kSuccess;
}

// Without the code: what the machine has.
void take_from_machine(std::map<std::string, KernelFacts>& kernels) {
    for (int i = 0; machine_kernel(i) != nullptr; ++i) {
        KernelFacts facts{machine_kernel(i), 0, 0, 64, 0};
        machine_describe(facts.name.c_str(), &facts.argument_bytes, &facts.threads);
        kernels[facts.name] = facts;
    }
}

Status compare_with_machine(std::map<std::string, KernelFacts>& kernels) {
    for (const auto& [name, facts] : kernels) {
        size_t argument_bytes = 0;
        int threads = 0;
        if (!machine_describe(name.c_str(), &argument_bytes, &threads)) {
            complain("the image has a kernel that the sources do not: " + name);
            return kInvalidImage;
        }
        if (facts.registers <= 0) return kInvalidImage;
        if (facts.argument_bytes != argument_bytes || facts.threads != threads) {
            complain("the image has another " + name + " than the sources: " + std::to_string(facts.argument_bytes) +
                     " bytes of arguments and " + std::to_string(facts.threads) + " threads, not " +
                     std::to_string(argument_bytes) + " and " + std::to_string(threads));
            return kInvalidImage;
        }
    }
    return kernels.empty() ? kInvalidImage : kSuccess;
}

bool runs(const FatEntry& entry) {
    const int own = gpu().architecture, built = static_cast<int>(entry.architecture);
    if (entry.kind == kElf) return built / 10 == own / 10 && built % 10 <= own % 10;
    return entry.kind == kPtx && built <= own;
}
bool better(const FatEntry& a, const FatEntry& b) {
    return a.kind != b.kind ? a.kind == kElf : a.architecture > b.architecture;
}

}  // namespace

Status read_image(const void* image, std::map<std::string, KernelFacts>& kernels) {
    const auto* at = static_cast<const unsigned char*>(image);
    FatHeader header;
    std::memcpy(&header, at, sizeof header);
    if (header.magic != kFatMagic || header.version != 1) return kInvalidImage;
    const unsigned char* end = at + header.header_bytes + header.bytes;
    FatEntry best{};
    const unsigned char* payload = nullptr;
    for (at += header.header_bytes; at + sizeof(FatEntry) <= end;) {
        FatEntry entry;
        std::memcpy(&entry, at, sizeof entry);
        if (entry.header_bytes < sizeof entry || at + entry.header_bytes + entry.bytes > end) return kInvalidImage;
        if (runs(entry) && (payload == nullptr || better(entry, best))) {
            best = entry;
            payload = at + entry.header_bytes;
        }
        at += entry.header_bytes + entry.bytes;
    }
    if (payload == nullptr) return kNoBinaryForGpu;
    if (best.kind == kPtx) {
        // PTX 8.0 to 8.5 came with CUDA 12.0 to 12.5, 8.6 to 8.8 with 12.7 to 12.9, 9.0 with 13.0.
        const int needs = 1000 * (best.major + 4) + 10 * (best.minor + (best.major == 8 && best.minor > 5 ? 1 : 0));
        if (needs > gpu().version) return kUnsupportedPtxVersion;
        take_from_machine(kernels);
        return kSuccess;
    }
    const std::string code = unpacked(best, payload);
    if (code == "?") return kInvalidImage;
    if (code.empty()) {
        take_from_machine(kernels);
        return kSuccess;
    }
    const Status status = read_elf(code, kernels);
    return status != kSuccess ? status : compare_with_machine(kernels);
}

}  // namespace driver
