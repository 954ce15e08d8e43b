#!/bin/sh
# layers.sh: fails when a header includes one of a layer that it must not know. docs/architecture.md has the reasons.
#   layer     its files (first match wins)                          it may include
rules='
  adaptor     eigen.hpp fmt.hpp llama.hpp llama/.*.hpp tensors.hpp  vocabulary interface policies list named cache umbrella session adaptor
  analysis    analysis/.*.hpp                                       vocabulary kernels codec formats storage interface policies cache adaptor analysis
  umbrella    kvc.hpp                                               vocabulary simd interface list cache
  session     session.hpp session/.*.hpp                            vocabulary kernels codec formats storage attention interface cache session
  c_api       c_api.h c_api/.*.hpp                                  vocabulary interface named cache session adaptor c_api
  compiled    implementation.hpp                                    vocabulary simd kernels codec named cache session c_api
  products    matrix.hpp                                            vocabulary kernels
  vocabulary  [^/]*.hpp                                             vocabulary
  simd        simd/.*.hpp                                           vocabulary simd
  kernels     kernels/.*.hpp                                        vocabulary simd kernels products
  formats     codec/make.hpp                                        vocabulary codec
  codec       codec/.*.hpp                                          vocabulary kernels codec
  fitted      policy/head_fit.hpp policies/(attention_matching|compact|pursuit|refit).hpp   vocabulary products interface policies formats fitted
  interface   policy/.*.hpp                                         vocabulary interface products
  list        policies/(all|common).hpp                             policies list
  policies    policies/.*.hpp                                       vocabulary interface policies formats
  named       named/.*.hpp                                          vocabulary interface policies fitted list named
  storage     storage/.*.hpp                                        vocabulary kernels codec formats storage interface
  attention   attention/.*.hpp                                      vocabulary kernels codec storage attention interface
  cache       cache/.*.hpp                                          vocabulary kernels codec storage attention interface cache
'
set -eu
cd "$(dirname "$0")/../../include/kvc"

# A rule's first word is its layer, words with a dot are patterns of files, the others are the layers it may include.
find . -name '*.hpp' | sed 's|^\./||' | sort | xargs grep -nE '^ *# *include *[<"]' /dev/null | awk -v rules="$rules" '
  BEGIN {
    count = split(rules, lines, "\n")
    for (i = 1; i <= count; ++i) {
      words = split(lines[i], word, " ")
      for (j = 2; j <= words; ++j) {
        if (word[j] ~ /\./) { pattern[++patterns] = "^" word[j] "$"; layer[patterns] = word[1] }
        else allowed[word[1], word[j]] = 1
      }
    }
  }
  function layer_of(file,   i) {
    for (i = 1; i <= patterns; ++i) if (file ~ pattern[i]) return layer[i]
    return "none"
  }
  {
    split($0, part, ":")
    file = part[1]
    target = $0
    sub(/^[^<"]*/, "", target)                          # <vector> or "kvc/views.hpp", and what follows it
    if (target ~ /^<(sys\/)?[^\/]*>/) next               # the standard library, the operating system
    if (target ~ /^"kvc needs /) next                    # a sentence for compilers that cannot compile the library
    if (target !~ /^.kvc\//) {
      # Eigen, fmt, llama.cpp: paid for by who includes the adaptor, the analysis, or a policy that fits matrices
      if (layer_of(file) == "adaptor" || layer_of(file) == "analysis" || layer_of(file) == "fitted") next
      print file ":" part[2] ": includes " target ", which is neither <kvc/...> nor of the standard library"
      wrong = 1
      next
    }
    sub(/^./, "", target)
    sub(/[>"].*$/, "", target)
    sub(/^kvc\//, "", target)
    ++compared
    if (!((layer_of(file), layer_of(target)) in allowed)) {
      print file ":" part[2] ": " layer_of(file) " must not include " target " (" layer_of(target) ")"
      wrong = 1
    }
  }
  END {
    print compared + 0 " includes compared"
    exit wrong || !compared
  }'
