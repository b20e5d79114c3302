# The targets are short commands around go; make alone lists them.
.DEFAULT_GOAL := help
.PHONY: help box bucketd build install demo test check bench conformance sdk update fuzz cover vuln lint chaos

# Tool versions are pinned here, not in go.mod.
GOLANGCI    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.1.4

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
BUILDFLAGS := -trimpath -ldflags "-s -w -X main.version=$(VERSION)"
FUZZTIME ?= 30s
KILLS ?= 1000
PREFIX ?= /usr/local
PROVIDER ?= local

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

box: ## build the helper program that is embedded
	@echo "compiling; a few minutes the first time"
	go generate ./sandbox/local/boxbin

bucketd: ## build the program that serves buckets, which is embedded too
	go generate ./mounts/bucketbin

build: box bucketd ## build bin/berth
	CGO_ENABLED=0 go build $(BUILDFLAGS) -o bin/berth .

install: build ## install berth below PREFIX (/usr/local)
	install -D -m 755 bin/berth $(DESTDIR)$(PREFIX)/bin/berth

demo: build ## see the whole thing work: a real server, driven by a real MCP client (PROVIDER=daytona: at one that plays Daytona)
	go run ./internal/demo -provider "$(PROVIDER)" bin/berth

test: box bucketd ## run the tests (TESTFLAGS: flags of go test)
	go test $(TESTFLAGS) ./...

check: box bucketd lint ## all that must pass before a change is proposed
	go mod tidy -diff
	test -z "$$(gofmt -l .)"
	go vet ./...
	go test -race -shuffle=on ./...

lint: ## run the linters
	go run $(GOLANGCI) run ./...

update: ## rewrite golden files and generated documents
	go test . ./tools -update

fuzz: ## run every fuzz target for FUZZTIME each
	@for p in $$(go list ./...); do for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz'); do \
		go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s $$p || exit 1; done; done

cover: box bucketd ## write coverage.out and show what is covered
	go test -coverprofile=coverage.out ./...
	go tool cover -func=coverage.out | tail -1

bench: build ## measure, beside the peers that this machine has
	go run ./internal/bench -berth bin/berth -o docs/performance.md

conformance: build ## run the public MCP conformance suite (Node 22 or later)
	BERTH=$(CURDIR)/bin/berth internal/conformance/run.sh

sdk: build ## run the official Daytona SDKs and Mastra's sandbox against berth (needs npm)
	BERTH=$(CURDIR)/bin/berth internal/daytonaapi/sdktest/run.sh

chaos: build ## kill servers and connections at random, and count the bytes
	go run ./internal/chaos -berth bin/berth -kills $(KILLS)

vuln: ## look for known vulnerabilities (needs the online database)
	go run $(GOVULNCHECK) ./...
