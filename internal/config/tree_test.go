package config

import (
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"strings"
	"testing"
)

// parsed returns the syntax of a file of this package.
func parsed(t *testing.T, file string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// structs returns the structs of the tree.
func structs(t *testing.T) map[string]*ast.StructType {
	t.Helper()
	found := make(map[string]*ast.StructType)
	ast.Inspect(parsed(t, "config.go"), func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok {
			found[spec.Name.Name] = spec.Type.(*ast.StructType)
		}
		return true
	})
	if len(found) < 8 {
		t.Fatalf("config.go has %d structs", len(found))
	}
	return found
}

func TestFieldsHaveCommentPathAndDefault(t *testing.T) {
	all := structs(t)
	for name, s := range all {
		for _, f := range s.Fields.List {
			if len(f.Names) == 0 {
				continue // embedded: its struct's fields have comments
			}
			field := name + "." + f.Names[0].Name
			if len(f.Names) > 1 {
				t.Errorf("%s shares its comment; give each field a line", field)
			}
			if text := strings.TrimSpace(f.Doc.Text()); !strings.HasSuffix(text, ".") {
				t.Errorf("%s has no comment that is a sentence: %q", field, text)
			}
			tag := reflect.StructTag(strings.Trim(f.Tag.Value, "`"))
			if _, ok := tag.Lookup("default"); !ok && name != "User" && !isPart(all, f.Type) {
				t.Errorf("%s has no default, not even an empty one", field)
			}
			if path := tag.Get("yaml"); path == "" || path != strings.ToLower(path) || strings.ContainsAny(path, "-., ") {
				t.Errorf("%s has the yaml name %q, want snake_case", field, path)
			}
		}
	}
}

// isPart reports whether a type is a struct of the tree.
func isPart(all map[string]*ast.StructType, of ast.Expr) bool {
	name, ok := of.(*ast.Ident)
	return ok && all[name.Name] != nil
}

// Whatever a configuration file may hold can be set from text.
func TestFieldsAreSetFromText(t *testing.T) {
	client, server, proxy := DefaultClient(), DefaultServer(), DefaultProxy()
	texts := map[string]string{
		"links": "wmproxy://a:b@h:1", "users": "alice:s",
		"entrance.udp_advertise": "192.0.2.1", "entrance.udp_ports": "1-2", "entrance.udp_from": "10.0.0.0/8",
		"exit.allow": "10.0.0.0/8", "exit.deny": "10.0.0.0/8", "exit.filtering": "address",
		"memory": "1GiB", "debug": "127.0.0.1:1",
	}
	for _, tree := range []any{&client, &server, &proxy} {
		for path, f := range Fields(tree) {
			text := texts[path]
			switch f.Value().(type) {
			case bool:
				text = "true"
			case string, Secret, []string:
				text = "word"
			}
			if text == "" {
				text = "1h1s" // a duration
			}
			before := reflect.ValueOf(f.Value()).Interface()
			if err := f.Set(text); err != nil {
				t.Errorf("%s: %v", path, err)
			}
			if reflect.DeepEqual(before, f.Value()) {
				t.Errorf("%s is still %v", path, before)
			}
		}
	}
}
