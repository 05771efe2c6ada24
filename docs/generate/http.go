package generate

import (
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/tricycle-relay/tricycle/docs"
)

// httpPage lists the operations of the OpenAPI descriptions, which are written
// by hand.
func httpPage(_ *Source, pages map[string]string) error {
	p := newPage("HTTP APIs", "Every path, method and answer. The OpenAPI 3.1 descriptions have the details; the tests of the services compare every exchange with them.")
	for _, service := range []string{"ms1", "ms2", "ms3"} {
		name := service + ".openapi.yaml"
		text, err := docs.Reference.ReadFile("reference/" + name)
		if err != nil {
			return err
		}
		var doc yaml.Node
		if err := yaml.Unmarshal(text, &doc); err != nil {
			return err
		}
		api := doc.Content[0]
		p.linef("## %s\n\n%s [%s](%s)\n", service, at(api, "info", "summary").Value, name, name)
		p.table([]string{"method", "path", "purpose", "answers"}, operations(api))
	}
	p.linef("An unknown path is answered with 404, an unsupported method with 405 and the header `Allow`. Every error is problem details, `application/problem+json`.\n")
	pages["http.md"] = p.text()
	return nil
}

// at returns the value at the end of the keys, nil if there is none.
func at(n *yaml.Node, keys ...string) *yaml.Node {
	for _, key := range keys {
		var next *yaml.Node
		for i := 0; n.Kind == yaml.MappingNode && i < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				next = n.Content[i+1]
			}
		}
		if n = next; n == nil {
			return nil
		}
	}
	return n
}

// operations returns a row for each method of each path.
func operations(api *yaml.Node) (rows [][]string) {
	paths := at(api, "paths").Content
	for i := 0; i < len(paths); i += 2 {
		methods := paths[i+1].Content
		for j := 0; j < len(methods); j += 2 {
			method := strings.ToUpper(methods[j].Value)
			if method == "HEAD" {
				continue // listed with GET
			}
			if at(paths[i+1], "head") != nil {
				method += ", HEAD"
			}
			answers := at(methods[j+1], "responses").Content
			var texts []string
			for k := 0; k < len(answers); k += 2 {
				answer := answers[k+1]
				if ref := at(answer, "$ref"); ref != nil && at(answer, "description") == nil {
					answer = at(api, strings.Split(strings.TrimPrefix(ref.Value, "#/"), "/")...)
				}
				texts = append(texts, answers[k].Value+": "+at(answer, "description").Value)
			}
			rows = append(rows, []string{method, code(paths[i].Value), at(methods[j+1], "summary").Value, strings.Join(texts, "<br>")})
		}
	}
	return rows
}
