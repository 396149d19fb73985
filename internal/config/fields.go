package config

import (
	"errors"
	"reflect"
	"strings"
)

// Error is about fields with invalid values. Its message is one sentence without their
// paths, and never repeats a secret.
type Error struct {
	Paths   []string
	Message string
}

func (e *Error) Error() string { return strings.Join(e.Paths, " and ") + ": " + e.Message }

// Field is an option of a tree.
type Field struct {
	Path     string
	value    reflect.Value
	fallback string // the default's text
}

// Fields returns the options of tree, a pointer to a Client, a Server or a Proxy, by their
// paths. A list is one option.
func Fields(tree any) map[string]Field {
	fields := make(map[string]Field)
	addFields(fields, "", reflect.ValueOf(tree).Elem())
	return fields
}

func addFields(fields map[string]Field, prefix string, v reflect.Value) {
	for i := range v.NumField() {
		f, tag := v.Field(i), v.Type().Field(i).Tag
		name := tag.Get("yaml")
		switch {
		case name == ",inline":
			addFields(fields, prefix, f)
		case f.Kind() == reflect.Struct && !hasText(f):
			addFields(fields, prefix+name+".", f)
		default:
			fields[prefix+name] = Field{prefix + name, f, tag.Get("default")}
		}
	}
}

// hasText reports whether a struct is a value, not a part of the tree.
func hasText(v reflect.Value) bool {
	_, ok := v.Addr().Interface().(interface{ UnmarshalText([]byte) error })
	return ok
}

// setDefaults sets every option of tree.
func setDefaults(tree any) {
	for _, f := range Fields(tree) {
		if f.fallback == "" {
			continue // the zero value
		}
		if err := f.Set(f.fallback); err != nil {
			panic(err)
		}
	}
}

// Value returns the option's value.
func (f Field) Value() any { return f.value.Interface() }

// IsList reports whether the option is a list.
func (f Field) IsList() bool { return f.value.Kind() == reflect.Slice }

// Set reads the option from texts, one for each item of a list; a list of words may have
// several in one text, with commas between them. With an error the option is as before.
func (f Field) Set(texts ...string) error {
	if !f.IsList() {
		if len(texts) != 1 {
			return f.wrong(errors.New("must be one value"))
		}
		v := reflect.New(f.value.Type())
		if err := parse(v.Interface(), texts[0]); err != nil {
			return f.wrong(err)
		}
		f.value.Set(v.Elem())
		return nil
	}
	item := f.value.Type().Elem()
	if item.Kind() == reflect.String {
		texts = strings.Split(strings.Join(texts, ","), ",")
	}
	list := reflect.MakeSlice(f.value.Type(), 0, len(texts))
	for _, text := range texts {
		v := reflect.New(item)
		if err := parse(v.Interface(), strings.TrimSpace(text)); err != nil {
			return f.wrong(err)
		}
		list = reflect.Append(list, v.Elem())
	}
	f.value.Set(list)
	return nil
}

func (f Field) wrong(err error) error { return &Error{[]string{f.Path}, err.Error()} }
