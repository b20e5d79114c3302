package tools

import (
	"bytes"
	"encoding/json"
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

// UnmarshalJSON takes both forms, and the text of a list: some clients make
// texts of arguments that may be one.
func (l *textList) UnmarshalJSON(b []byte) error {
	if b = bytes.TrimSpace(b); len(b) > 0 && b[0] == '"' {
		var s string
		err := json.Unmarshal(b, &s)
		var list []string
		if strings.HasPrefix(strings.TrimSpace(s), "[") && json.Unmarshal([]byte(s), &list) == nil && len(list) > 0 {
			*l = list
			return nil
		}
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
