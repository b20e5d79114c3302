# From the output of "go test -v", one line a package that failed: its path, and
# the tests that failed in it as "A|B". Where more is wrong than that tests
# failed (a race, a panic, no build, a time-out), the second word is "-".
/^--- FAIL: / { tests = tests (tests == "" ? "" : "|") $3 }
/^(panic:|fatal error:|SIGQUIT|WARNING: DATA RACE)|testing.go.*race detected/ { worse = 1 }
/^(ok|FAIL)[ \t]+[^ \t]/ {
	if ($1 == "FAIL") print $2, (worse || tests == "" ? "-" : tests)
	tests = ""; worse = 0
}
