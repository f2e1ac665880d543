/* The entry point, and what init and probe both need. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "probe.h"

long page_size;

void out(const char *fmt, ...)
{
	static char line[1 << 16];
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof line - 1)
		n = sizeof line - 1;
	for (int done = 0; done < n;) {
		ssize_t wrote = write(1, line + done, n - done);
		if (wrote <= 0)
			return;
		done += wrote;
	}
}

int put_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC);
	if (fd < 0)
		return -1;
	int rc = write(fd, text, strlen(text)) < 0 ? -1 : 0;
	close(fd);
	return rc;
}

/* The first line of a file. */
int get_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t got = fd < 0 ? -1 : read(fd, text, size - 1);
	text[got < 0 ? 0 : got] = 0;
	text[strcspn(text, "\n")] = 0;
	if (fd >= 0)
		close(fd);
	return got < 0 ? -1 : 0;
}

const char *word(char **words)
{
	while (**words == ' ')
		++*words;
	char *start = *words;
	*words += strcspn(start, " ");
	if (**words)
		*(*words)++ = 0;
	return start;
}

/* Numbers are hexadecimal, in both directions. */
uint64_t number(char **words)
{
	return strtoull(word(words), NULL, 16);
}

int main(int argc, char **argv)
{
	page_size = sysconf(_SC_PAGESIZE);
	return argc > 0 && !strcmp(argv[0], "probe") ? probe_main() : init_main();
}
