# Shortens the output of "go test -v": the lines of packages, what failing tests
# said, and at the end what was skipped and why. "wide" is the longest line,
# "most" how many lines one failure may take.
function put(line) {
	if (shown++ < most) print substr(line, 1, wide)
	else if (shown == most + 1) print "    ... the rest is in the full log"
}
function keep(test, line) {
	if (held[test]++ < most) said[test] = said[test] line "\n"
}
function tell(test, lines, n, i) {
	n = split(said[test], lines, "\n")
	for (i = 1; i < n; i++) put(lines[i])
}
function forget() { split("", said); split("", held); test = ""; loose = 0; shown = 0 }
BEGIN { wide = 400; most = 80 }

/^(ok|FAIL)[ \t]+[^ \t]/ { # the end of a package
	if ($1 == "FAIL") for (t in said) if (said[t] ~ /panic|fatal error|DATA RACE/) tell(t)
	print; fflush(); forget(); next
}
/^[?]|no test files/ { next }
/^(# |panic:|fatal error:|SIGQUIT|\*\*\* |make)/ { loose = 1 } # no test's own
/^=== (RUN|CONT|NAME)/ { test = $3; loose = 0; next }
/^=== / { next }
/^ *--- (PASS|FAIL|SKIP): / {
	loose = 0
	if ($2 == "FAIL:") { shown = 0; put($0); tell($3) }
	if ($2 == "SKIP:") skipped[++skips] = $3 "\n" said[$3]
	delete said[$3]; delete held[$3]
	# What follows is of the test that this one was a part of.
	test = $3; next
}
/^(PASS|FAIL|exit status|testing: warning)/ { next }
loose { put($0); next }
test != "" { keep(test, $0); next }
{ keep("", $0) }

END {
	if (said[""] != "") tell("")
	if (skips) print "skipped:"
	for (i = 1; i <= skips; i++) {
		n = split(skipped[i], lines, "\n")
		print "    " lines[1]
		for (j = 2; j < n; j++) print "        " substr(lines[j], 1, wide)
	}
}
