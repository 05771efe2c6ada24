package generate

import (
	"fmt"
	"go/ast"
	"maps"
	"slices"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// span is a kind of span: the function that starts it, and those that say more
// about it later. What it is called and carries is read from their code.
type span struct {
	service string
	start   string
	later   []string
	parent  string
	life    string
}

// spans are all kinds. A function that has to do with spans and is not here
// makes generating fail.
var spans = []span{
	{"ms1", "engine.makeRound", []string{"engine.giveUp", "engine.written"},
		"none: it is the root, with both ids derived from the message's key",
		"from the making of a message until its row is committed or it is given up"},
	{"ms2", "Service.startSpan", []string{"Service.take", "Service.reject", "queue.send", "entry.fail"},
		"the derived root; none for a frame that is no message",
		"from the reading of a frame until Kafka has acknowledged the record, one for each copy"},
	{"ms3", "consumer.process", []string{"consumer.post", "consumer.bury", "fail"},
		"the `traceparent` of the record's headers; the derived root without one",
		"from the fetching of a record until it is stored or a dead letter"},
	{"ms1", "Service.traced", []string{"Service.store"},
		"the `traceparent` of the request's headers; none without one",
		"one request"},
	{"ms1", "engine.takeBack", []string{"committer.settle"},
		"the span of the `POST /store` that came first",
		"from the handing in of a row until its commit; one for each message, though statements are grouped"},
}

// semconvKeys are the attributes that the code names by semconv's identifiers.
var semconvKeys = map[string]attribute.Key{
	"DBCollectionName":                semconv.DBCollectionNameKey,
	"DBOperationBatchSize":            semconv.DBOperationBatchSizeKey,
	"DBOperationName":                 semconv.DBOperationNameKey,
	"DBSystemNameKey":                 semconv.DBSystemNameKey,
	"ErrorTypeKey":                    semconv.ErrorTypeKey,
	"HTTPRequestMethodKey":            semconv.HTTPRequestMethodKey,
	"HTTPRequestMethodPost":           semconv.HTTPRequestMethodKey,
	"HTTPResponseStatusCode":          semconv.HTTPResponseStatusCodeKey,
	"HTTPRoute":                       semconv.HTTPRouteKey,
	"MessagingConsumerGroupName":      semconv.MessagingConsumerGroupNameKey,
	"MessagingDestinationName":        semconv.MessagingDestinationNameKey,
	"MessagingDestinationPartitionID": semconv.MessagingDestinationPartitionIDKey,
	"MessagingKafkaMessageKey":        semconv.MessagingKafkaMessageKeyKey,
	"MessagingKafkaOffset":            semconv.MessagingKafkaOffsetKey,
	"MessagingMessageBodySize":        semconv.MessagingMessageBodySizeKey,
	"MessagingOperationName":          semconv.MessagingOperationNameKey,
	"MessagingOperationTypeProcess":   semconv.MessagingOperationTypeKey,
	"MessagingOperationTypeReceive":   semconv.MessagingOperationTypeKey,
	"MessagingSystemKafka":            semconv.MessagingSystemKey,
	"URLFull":                         semconv.URLFullKey,
	"URLPath":                         semconv.URLPathKey,
	"URLScheme":                       semconv.URLSchemeKey,
}

// placeholders stand in names of spans for what is known only at run time.
var placeholders = map[string]string{"r.Method": "METHOD", "route": "ROUTE", "s.topic": "TOPIC", "m.Topic": "TOPIC"}

// spanCode is what a function has to do with spans.
type spanCode struct {
	name, kind string
	attributes []string // given when it starts, or to what starts it
	set        []string // by SetAttributes
	events     []string
	called     []string // functions of the same package
	problems   []error
}

func tracesPage(src *source, pages map[string]string) error {
	functions := map[string]*spanCode{} // by service/function
	helpers := []string{}               // those that return attributes
	folders, err := src.folders()
	if err != nil {
		return err
	}
	elsewhere := ""
	for _, folder := range folders {
		service, ok := strings.CutPrefix(folder, "services/")
		if !ok || strings.Contains(service, "/") {
			service = ""
		}
		err := src.functions(folder, func(_, name string, f *ast.FuncDecl) {
			if service == "" {
				// The tracer itself is in lib/telemetry.
				if src.spanCode(f).name != "" && folder != "lib/telemetry" {
					elsewhere = folder + "/" + name
				}
				return
			}
			if f.Type.Results != nil && strings.Contains(src.show(f.Type.Results.List[0].Type), "attribute.KeyValue") {
				helpers = append(helpers, service+"/"+name)
			}
			functions[service+"/"+name] = src.spanCode(f)
		})
		if err != nil {
			return err
		}
	}

	if elsewhere != "" {
		return fmt.Errorf("found a span that %s starts, expected one in the package of a service; teach docs/generate/traces.go", elsewhere)
	}

	// A helper's attributes are those of its callers.
	for name, c := range functions {
		for _, helper := range helpers {
			if folder, function, _ := strings.Cut(helper, "/"); strings.HasPrefix(name, folder+"/") && slices.Contains(c.called, function) {
				c.attributes = append(c.attributes, functions[helper].attributes...)
			}
		}
	}
	for _, helper := range helpers {
		delete(functions, helper)
	}
	maps.DeleteFunc(functions, func(_ string, c *spanCode) bool {
		return c.name == "" && len(c.attributes)+len(c.set)+len(c.events) == 0
	})

	p := newPage("Spans", "Every message is one trace. Its id, and the id of its root span, follow from the message's key "+
		"([architecture](../architecture.md)),\nso a trace can be found from a row. Names are those of OpenTelemetry's semantic conventions 1.43, "+
		"and `tricycle.…` for the rest.\nWhich messages are traced is decided from the trace id (`tracing.sample_ratio`).")
	used := map[string]bool{}
	for _, s := range spans {
		begin := functions[s.service+"/"+s.start]
		if begin == nil || begin.name == "" {
			return fmt.Errorf("found no span that %s starts in services/%s, expected one; correct the table 'spans'", s.start, s.service)
		}
		var attributes, later, events []string
		for i, name := range append([]string{s.start}, s.later...) {
			key := s.service + "/" + name
			c := functions[key]
			if c == nil {
				return fmt.Errorf("found nothing about spans in %s of services/%s, expected something; correct the table 'spans'", name, s.service)
			}
			for _, err := range c.problems {
				return fmt.Errorf("services/%s: %s: %w", s.service, name, err)
			}
			used[key] = true
			if i == 0 {
				attributes = c.attributes
			} else {
				later = append(later, c.attributes...)
			}
			later = append(later, c.set...)
			events = append(events, c.events...)
		}
		later = slices.DeleteFunc(sortedSet(later), func(a string) bool { return slices.Contains(attributes, a) })
		p.linef("## %s: `%s`\n", s.service, begin.name)
		rows := [][]string{{"kind", begin.kind}, {"parent", s.parent}, {"life", s.life}, {"attributes", codes(sortedSet(attributes))}}
		if len(later) > 0 {
			rows = append(rows, []string{"added where they apply", codes(later)})
		}
		if len(events) > 0 {
			rows = append(rows, []string{"events", codes(sortedSet(events))})
		}
		p.table([]string{"", ""}, rows)
	}
	for _, name := range slices.Sorted(maps.Keys(functions)) {
		if !used[name] {
			return fmt.Errorf("found spans in services/%s, which the table 'spans' of docs/generate/traces.go does not name", name)
		}
	}
	pages["traces.md"] = p.text()
	return nil
}

func sortedSet(texts []string) []string {
	texts = slices.Clone(texts)
	slices.Sort(texts)
	return slices.Compact(texts)
}

// spanCode reads what a function has to do with spans.
func (s *source) spanCode(f *ast.FuncDecl) *spanCode {
	c := &spanCode{}
	s.readSpans(c, f.Body)
	return c
}

func (s *source) readSpans(c *spanCode, body ast.Node) {
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			switch {
			case s.show(n.X) == "semconv":
				key, ok := semconvKeys[n.Sel.Name]
				if !ok {
					c.problems = append(c.problems, fmt.Errorf("found semconv.%s, which semconvKeys of docs/generate/traces.go does not have", n.Sel.Name))
				}
				c.attributes = append(c.attributes, string(key))
			case strings.HasPrefix(n.Sel.Name, "SpanKind"):
				c.kind = strings.ToUpper(strings.TrimPrefix(n.Sel.Name, "SpanKind"))
			}
		case *ast.CallExpr:
			if sel, ok := n.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "SetAttributes" {
				set := &spanCode{}
				for _, arg := range n.Args {
					s.readSpans(set, arg)
				}
				c.set = append(c.set, set.attributes...)
				c.called = append(c.called, set.called...)
				c.problems = append(c.problems, set.problems...)
				return false
			}
			c.call(s, n)
		}
		return true
	})
}

func (c *spanCode) call(s *source, call *ast.CallExpr) {
	if name, ok := call.Fun.(*ast.Ident); ok {
		c.called = append(c.called, name.Name)
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || len(call.Args) == 0 {
		return
	}
	text, isLiteral := literal(call.Args[0])
	switch on := s.show(sel.X); {
	case on == "attribute" && isLiteral:
		c.attributes = append(c.attributes, text)
	case sel.Sel.Name == "AddEvent":
		c.events = append(c.events, text)
	case sel.Sel.Name == "StartRoot":
		c.spanName(s, call.Args[2])
	case sel.Sel.Name == "Start" && strings.HasSuffix(on, "Tracer"):
		c.spanName(s, call.Args[1])
	}
}

func (c *spanCode) spanName(s *source, e ast.Expr) {
	if sum, ok := e.(*ast.BinaryExpr); ok {
		c.spanName(s, sum.X)
		c.spanName(s, sum.Y)
		return
	}
	text, ok := literal(e)
	if !ok {
		if text, ok = placeholders[s.show(e)]; !ok {
			c.problems = append(c.problems, fmt.Errorf("found %s in the name of a span, which placeholders of docs/generate/traces.go does not have", s.show(e)))
		}
	}
	c.name += text
}
