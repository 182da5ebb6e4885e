// SPDX-FileCopyrightText: The crashcart.fleet contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// Loads the library that its argument names. Without an argument it waits.
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>

int main(int count, char **words) {
    if (count < 2) return pause();
    puts(dlopen(words[1], RTLD_NOW) ? "loaded" : "not found");
    return 0;
}
