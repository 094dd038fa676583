// The names and places of a struct's fields as text: "GatherParams source@0:8 result@8:8 ...", a line for each struct. The
// host, which describes the same structs in lib/kernels, compares them by name before it writes the first one.
#pragma once
#include <stddef.h>

namespace flashattn {

/** Text in a buffer that is large enough. */
class FieldText {
 public:
  explicit FieldText(char* to) : at_(to) {}
  ~FieldText() { *at_ = '\0'; }

  /** `names` are those of `fields`, separated by commas. */
  template <class... Fields>
  void add(const char* name, const char* names, const void* object, const Fields&... fields) {
    begin(name);
    (add_field(names, reinterpret_cast<const char*>(&fields) - static_cast<const char*>(object), sizeof(Fields)), ...);
    end();
  }

  void begin(const char* name) { take(name); }
  void word(const char* text) {
    *at_++ = ' ';
    take(text);
  }
  void end() { *at_++ = '\n'; }

 private:
  void add_field(const char*& names, size_t offset, size_t size) {
    *at_++ = ' ';
    while (*names == ' ' || *names == ',') ++names;
    take(names);
    *at_++ = '@';
    put(offset);
    *at_++ = ':';
    put(size);
  }
  void take(const char*& name) {
    while (*name != '\0' && *name != ',') *at_++ = *name++;
  }
  void put(size_t number) {
    if (number >= 10) put(number / 10);
    *at_++ = static_cast<char>('0' + number % 10);
  }

  char* at_;
};

// Stands behind each struct and names its fields once more. In a derived struct the names are the fields themselves, so a
// place always belongs to its name; one that is forgotten leaves a gap, which the host reports.
#define FLASHATTN_FIELDS(Type, ...)                                                         \
  inline void describe_fields(FieldText& flashattn_text, const Type*) {                     \
    struct Named : Type {                                                                   \
      void describe(FieldText& flashattn_to) const {                                        \
        flashattn_to.add(#Type, #__VA_ARGS__, static_cast<const Type*>(this), __VA_ARGS__); \
      }                                                                                     \
    };                                                                                      \
    const Named named{};                                                                    \
    named.describe(flashattn_text);                                                         \
  }                                                                                         \
  static_assert(sizeof(Type) % 4 == 0)

}  // namespace flashattn
