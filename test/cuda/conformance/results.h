// A file of what every case gave: for each a line "<words> <name>", then its words.
#pragma once
#include <fstream>
#include <map>
#include <stdexcept>

#include "case.h"

namespace flashattn::test {

using Results = std::map<std::string, Words>;  // by the name of the case

inline std::streamsize bytes_of(const Words& words) {
  return static_cast<std::streamsize>(words.size() * sizeof(uint32_t));
}

inline void write_results(const std::string& path, const Results& results) {
  std::ofstream file(path, std::ios::binary);
  for (const auto& [name, words] : results) {
    file << words.size() << ' ' << name << '\n';
    file.write(reinterpret_cast<const char*>(words.data()), bytes_of(words));
  }
  file.close();
  if (!file) throw std::runtime_error("cannot write " + path);
}

inline Results read_results(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  Results results;
  size_t count = 0;
  std::string name;
  while (file >> count && file.get() && std::getline(file, name)) {
    Words words(count);
    file.read(reinterpret_cast<char*>(words.data()), bytes_of(words));
    if (!file) throw std::runtime_error(path + " ends within " + name);
    results.emplace(name, std::move(words));
  }
  return results;
}

}  // namespace flashattn::test
