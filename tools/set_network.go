package tools

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

// networkArguments are the policy in start_sandbox and set_network.
type networkArguments struct {
	BlockAll     *bool    `json:"network_block_all" doc:"Only the lists."`
	AllowList    textList `json:"network_allow_list" doc:"Only CIDRs." schema:"minitems=1;items=256;bytes=8192"`
	AllowDomains []string `json:"network_allow_domains" doc:"Only these names, or *.example.com." schema:"minitems=1;items=256;bytes=8192"`
}

// textList is a list of texts, or one text with commas.
type textList []string

// UnmarshalJSON takes both forms.
func (l *textList) UnmarshalJSON(b []byte) error {
	if b = bytes.TrimSpace(b); len(b) > 0 && b[0] == '"' {
		var s string
		err := json.Unmarshal(b, &s)
		*l = textList{s}
		return err
	}
	return json.Unmarshal(b, (*[]string)(l))
}

// policy is what the arguments ask for; nil when there are none.
func (a networkArguments) policy() (*sandbox.NetworkPolicy, error) {
	if a.BlockAll == nil && a.AllowList == nil && a.AllowDomains == nil {
		return nil, nil
	}
	p := &sandbox.NetworkPolicy{BlockAll: a.BlockAll != nil && *a.BlockAll}
	var err error
	p.AllowCIDRs, err = sandbox.ParseCIDRs("network_allow_list", a.AllowList)
	for _, d := range a.AllowDomains {
		p.AllowDomains = append(p.AllowDomains, strings.TrimSuffix(strings.ToLower(d), "."))
	}
	return p, err
}

type setNetworkArguments struct {
	networkArguments
	sessionArgument
}

func setNetwork() tool {
	t := tool{
		name: "set_network", toolset: "network",
		description: "Sets what the sandbox may reach, at once; open connections that are no longer allowed are cut. What is not given is off: without arguments it is public (the internet, not the host or private ranges).",
		idempotent:  true, reach: mustExist,
	}
	t.args, t.handle = handler(func(c *call, a *setNetworkArguments) (*mcp.CallToolResult, error) {
		p, err := a.policy()
		if err != nil {
			return nil, err
		}
		if p == nil {
			p = &sandbox.NetworkPolicy{}
		}
		info, err := c.manager.SetNetwork(c.ctx, c.key, *p)
		if err != nil {
			return nil, err
		}
		return recordAnswer(sandboxAnswer{Sandbox: c.infoOf(*info), Notice: c.noticeText(sandbox.Notice{})})
	})
	return t
}

func destination(r sandbox.Refusal) string {
	if r.Port == 0 {
		return r.Host
	}
	return net.JoinHostPort(r.Host, strconv.Itoa(r.Port))
}

// refusals says which connections of a process were refused; those of nobody
// known are told as what happened while it ran.
func refusals(p sandbox.ProcessInfo) []string {
	var out []string
	for i, r := range p.Refused {
		if i == 3 {
			out = append(out, fmt.Sprintf("%d more kinds of connections were refused; get_sandbox lists them", len(p.Refused)-i))
			break
		}
		s := "network: refused " + destination(r)
		if r.Protocol == "dns" {
			s = "network: the name " + r.Host + " was refused"
		} else if r.Protocol == "udp" {
			s += " (udp)"
		}
		if r.Count > 1 {
			s += fmt.Sprintf(" %d times", r.Count)
		}
		if r.Process == "" {
			s += " while this ran"
		}
		s += ": " + r.Rule
		if r.Allow != "" {
			s += "; allowed by " + r.Allow
		}
		out = append(out, s)
	}
	return out
}
