// How a row of a table of kernels is chosen, the same for all devices: in the order of the rows, or by name.
#pragma once
#include <cstring>
#include <stdexcept>
#include <string>

#include "conv/params.h"

namespace fastconv {

// Which rows may serve, beside what they say themselves; names or null.
struct ConvWish {
  const char* only;  // no other than this one
  const char* skip;  // none of this name, nor of one that begins with this word
};

inline bool conv_named(const char* name, const char* other) { return std::strcmp(name, other) == 0; }

// "winograd" is a row of its own and the first word of another's name.
inline bool conv_begins(const char* word, const char* name) {
  const size_t length = std::strlen(word);
  return std::strncmp(word, name, length) == 0 && (name[length] == '\0' || name[length] == '_');
}

// The general kernel, the last, is the only one that knows a sum of nothing: the others count on at least one channel
// and one tap.
inline bool conv_adds_nothing(const ConvParams& p) { return p.C * p.R * p.S == 0; }

// The first row that is preferred and that `can(row)`, or the only one that may serve; null where none does.
// `pass_by(name, reason)` hears of every row before it.
template <class Row, size_t Count, class Can, class PassBy>
const Row* conv_first(const Row (&table)[Count], const ConvParams& p, const ConvWish& wish, const Can& can,
                      const PassBy& pass_by) {
  for (const Row& row : table) {
    const char* reason = nullptr;
    if (wish.only && !conv_named(wish.only, row.name)) {
      reason = conv_adds_nothing(p) ? "there is nothing to add up" : "another kernel is asked for by name";
    } else if (!wish.only && wish.skip && conv_begins(wish.skip, row.name)) {
      reason = "switched off";
    } else if (!wish.only && !row.preferred(p)) {
      reason = "not preferred";
    } else if (!can(row)) {
      reason = "cannot serve these arguments";
    }
    if (!reason) return &row;
    pass_by(row.name, reason);
  }
  return nullptr;
}

inline void conv_pass_by_silently(const char*, const char*) {}

// What was found; or refuses, because the only row that may serve cannot.
template <class Row>
const Row& conv_served(const char* op, const Row* found, const char* only) {
  if (!found)
    throw std::runtime_error(std::string(op) + ": kernel must be able to serve these arguments (got " + only + ")");
  return *found;
}

}  // namespace fastconv
