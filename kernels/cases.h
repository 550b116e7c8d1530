// How a program for an emulator reads cases from standard input and answers on standard output, one after the other until
// the input ends. An emulator translates the machine code anew in every process, which takes longer than a case.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace cir {

[[noreturn]] inline void fail_case(const char* why) {
    std::fputs(why, stderr);
    std::exit(1);
}

template <class T>
std::vector<T> read_case(size_t count) {
    std::vector<T> out(count);
    if (count && std::fread(out.data(), sizeof(T), count, stdin) != count) fail_case("the case ends early\n");
    return out;
}

template <class T>
void write_answer(const std::vector<T>& values) {
    if (!values.empty() && std::fwrite(values.data(), sizeof(T), values.size(), stdout) != values.size()) fail_case("nobody takes the answer\n");
}

// answer(), which reads one case and writes its answer, for every case.
template <class F>
void answer_cases(const F& answer) {
    for (int next; (next = std::getchar()) != EOF;) {
        std::ungetc(next, stdin);
        answer();
        if (std::fflush(stdout) != 0) fail_case("nobody takes the answer\n");
    }
}

}  // namespace cir
