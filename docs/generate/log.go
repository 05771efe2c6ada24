package generate

import (
	"fmt"
	"go/ast"
	"slices"
	"strings"
)

// levels are zerolog's methods that begin an event. Log has no level: it is
// said whatever logging.level is.
var levels = map[string]string{"Debug": "debug", "Info": "info", "Warn": "warn", "Error": "error", "Log": "always"}

// fieldNames are zerolog's fields that have a name of their own.
var fieldNames = map[string]string{"Err": "error"}

// logs says in whose log the events of a package are.
var logs = map[string]string{
	"lib/program":            "ms1, ms2, ms3",
	"lib/telemetry":          "ms1, ms2, ms3",
	"lib/topic":              "ms2, ms3",
	"services/allinone":      "ms1, ms2, ms3, each of its own start",
	"services/ms1":           "ms1",
	"services/ms1/cmd/ms1":   "ms1",
	"services/ms1/mariadb":   "ms1",
	"services/ms1/sqlite":    "ms1 in allinone",
	"services/ms1/websocket": "ms1",
	"services/ms2":           "ms2",
	"services/ms2/cmd/ms2":   "ms2",
	"services/ms3":           "ms3",
	"services/ms3/cmd/ms3":   "ms3",
}

func logPage(src *source, pages map[string]string) error {
	p := newPage("Log events", "A service's log file has a JSON object a line, with `time`, `level`, `service`, `message` and the fields below; the console has the same\n"+
		"for people. `always` stands for events that have no level and are written at every `logging.level`. `%s`, `%d` and the like stand for values.")
	folders, err := src.folders()
	if err != nil {
		return err
	}
	for _, folder := range folders {
		rows, err := src.events(folder)
		if err != nil {
			return err
		}
		switch service := logs[folder]; {
		case len(rows) == 0:
		case service == "":
			return fmt.Errorf("found log events in %s, which the table 'logs' of docs/generate/log.go does not name", folder)
		default:
			p.linef("## %s\n\nIn the log of %s.\n", folder, service)
			p.table([]string{"level", "message", "fields", "said by"}, rows)
		}
	}
	pages["log.md"] = p.text()
	return nil
}

// events returns a row for each event of a package, in the order of the code.
func (s *source) events(folder string) (rows [][]string, err error) {
	err = s.functions(folder, func(_, name string, f *ast.FuncDecl) {
		closures := s.eventClosures(f)
		ast.Inspect(f.Body, func(n ast.Node) bool {
			call, _ := n.(*ast.CallExpr)
			if call == nil {
				return true
			}
			e, ok := s.event(call, closures)
			if ok {
				rows = append(rows, []string{e.level, code(e.message), codes(e.fields), code(name)})
			}
			return !ok
		})
	})
	return rows, err
}

type event struct {
	level, message string
	fields         []string
}

// event reads a chain such as log.Warn().Err(err).Msg("text").
func (s *source) event(call *ast.CallExpr, closures map[string]ast.Expr) (e event, ok bool) {
	sel, _ := call.Fun.(*ast.SelectorExpr)
	if sel == nil || sel.Sel.Name != "Msg" && sel.Sel.Name != "Msgf" || len(call.Args) == 0 {
		return e, false
	}
	e.message = s.words(call.Args[0])
	for at := sel.X; ; {
		inner, _ := at.(*ast.CallExpr)
		if inner == nil {
			return e, false
		}
		if name, isName := inner.Fun.(*ast.Ident); isName {
			if at = closures[name.Name]; at == nil {
				return e, false
			}
			continue
		}
		step, _ := inner.Fun.(*ast.SelectorExpr)
		if step == nil {
			return e, false
		}
		if level, begins := levels[step.Sel.Name]; begins && len(inner.Args) == 0 {
			e.level = level
			slices.Reverse(e.fields)
			return e, true
		}
		field := fieldNames[step.Sel.Name]
		if len(inner.Args) > 1 {
			field, _ = literal(inner.Args[0])
		}
		if field != "" {
			e.fields = append(e.fields, field)
		}
		at = step.X
	}
}

// words returns the text of a message, … for what is not written there.
func (s *source) words(e ast.Expr) string {
	if sum, ok := e.(*ast.BinaryExpr); ok {
		return s.words(sum.X) + s.words(sum.Y)
	}
	if text, ok := literal(e); ok {
		return strings.ReplaceAll(text, "\n", " ")
	}
	return "…"
}

// eventClosures returns the functions inside f that begin an event.
func (s *source) eventClosures(f *ast.FuncDecl) map[string]ast.Expr {
	found := map[string]ast.Expr{}
	ast.Inspect(f.Body, func(n ast.Node) bool {
		assign, _ := n.(*ast.AssignStmt)
		if assign == nil || len(assign.Rhs) != 1 {
			return true
		}
		if inner, ok := assign.Rhs[0].(*ast.FuncLit); ok && len(inner.Body.List) == 1 {
			if ret, ok := inner.Body.List[0].(*ast.ReturnStmt); ok && len(ret.Results) == 1 {
				found[s.show(assign.Lhs[0])] = ret.Results[0]
			}
		}
		return true
	})
	return found
}
