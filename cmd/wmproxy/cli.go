package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"wmproxy/internal/config"
	"wmproxy/internal/link"
)

// What a user may type:
//
//	wmproxy                               help, exit code 0
//	wmproxy help | -h | --help            the same
//	wmproxy help CMD | CMD -h | --help    help for CMD
//	wmproxy --version                     wmproxy version
//	wmproxy CMD [flags and arguments in any order]
//	wmproxy --flag ...                    wmproxy proxy --flag ...
//	wmproxy --flag ... CMD                wrong usage: flags go after CMD
//	wmproxy WORD                          wrong usage: no such command
//
// In a command:
//
//	--flag VALUE, --flag=VALUE            the same, also with one hyphen
//	--flag given twice                    adds to a list; wrong usage for a single value
//	a comma in a value                    belongs to the value
//	--bool, --bool=false                  no value of its own, repeats are harmless
//	--flag --other                        wrong usage: --flag has no value; --flag=--other has
//	--                                    the rest are arguments
//	too many arguments                    wrong usage, without repeating them: they may be secrets
//
// A flag that is not on the command line is read from WMPROXY_CMD_FLAG, hyphens
// as underscores: empty is unset, lists are separated by commas, or by spaces if their
// items may hold commas, and the plain form reads WMPROXY_PROXY_FLAG. The command line
// wins over the environment.
//
// urfave/cli does several of these differently, so arrange turns the command line
// into the one form that it reads without surprises,
// wmproxy CMD --flag=VALUE... -- ARGUMENT, and it only stores and documents.

// app returns the commands. Each run needs new ones, because urfave/cli keeps the parsed
// values in the flags.
func (p *program) app() *cli.App {
	return &cli.App{
		Name:      "wmproxy",
		HelpName:  "wmproxy",
		Usage:     "UDP and TCP from a SOCKS5 application, through one tunnel, out of your server",
		UsageText: "wmproxy COMMAND [flags]\nwmproxy COMMAND --help\nwmproxy --flag... (without a command: the same as wmproxy proxy --flag...)",
		Description: "Start \"wmproxy server\" on a public machine and paste the command that it prints on yours.\n" +
			"Every flag is also read from the environment: WMPROXY_COMMAND_FLAG, in capitals, hyphens as\nunderscores, lists separated by commas (by spaces if their items may hold commas: TOKEN).",
		Commands:                  []*cli.Command{p.server(), p.client(), p.proxy(), p.status(), p.test(), p.demo(), p.bench(), p.version()},
		HideHelpCommand:           true,
		HideVersion:               true,
		DisableSliceFlagSeparator: true,
		Writer:                    p.stdout,
		ErrWriter:                 p.stderr,
		// The default would print and exit; run does both.
		ExitErrHandler: func(*cli.Context, error) {},
	}
}

// arrange returns the whole command line, program name first, as urfave/cli
// reads it best.
func (p *program) arrange(app *cli.App, args []string) ([]string, error) {
	// Nothing of urfave's may reach standard output on wrong usage.
	for _, command := range app.Commands {
		command.HideHelpCommand = true
		command.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return usageErrorf("%v", err) }
	}
	if len(args) == 0 {
		return []string{app.Name, "--help"}, nil
	}
	first, rest := args[0], args[1:]
	switch first {
	case "-h", "-help", "--help":
		return []string{app.Name, "--help"}, nil
	case "help":
		return arrangeHelp(app, rest)
	case "-version", "--version":
		first = "version"
	}
	if strings.HasPrefix(first, "-") {
		return p.arrangePlain(app, args)
	}
	command := app.Command(first)
	if command == nil {
		return nil, unknownCommand(first)
	}
	return p.arrangeCommand(app, command, rest)
}

func arrangeHelp(app *cli.App, args []string) ([]string, error) {
	switch {
	case len(args) == 0:
		return []string{app.Name, "--help"}, nil
	case len(args) > 1:
		return nil, usageErrorf("help takes one command; see wmproxy help")
	case app.Command(args[0]) == nil:
		return nil, unknownCommand(args[0])
	}
	return []string{app.Name, args[0], "--help"}, nil
}

// plainWord matches words that an error can repeat without giving a secret away.
var plainWord = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,15}$`)

func unknownCommand(word string) error {
	switch {
	case strings.HasPrefix(strings.ToLower(word), "wmproxy://"):
		return usageErrorf("a link needs the command client before it; write wmproxy client LINK")
	case !plainWord.MatchString(word):
		return usageErrorf("the first argument is not a command; see wmproxy help")
	}
	return usageErrorf("%s is not a command; see wmproxy help", word)
}

// arrangePlain is a command line that starts with a flag: proxy's. A command
// further on means that its flags were put before it.
func (p *program) arrangePlain(app *cli.App, args []string) ([]string, error) {
	flags, arguments, err := scan(app.Command("proxy"), args)
	misplaced := arguments
	if err != nil {
		misplaced = args // a flag of another command stopped the scan
	}
	for _, word := range misplaced {
		if app.Command(word) != nil || word == "help" {
			return nil, usageErrorf("flags go after the command; write wmproxy %s first and then its flags", word)
		}
	}
	if err != nil {
		return nil, err
	}
	return p.finish(app, app.Command("proxy"), flags, arguments)
}

func (p *program) arrangeCommand(app *cli.App, command *cli.Command, args []string) ([]string, error) {
	flags, arguments, err := scan(command, args)
	if err != nil {
		return nil, err
	}
	return p.finish(app, command, flags, arguments)
}

// given is one flag with a value, under its long name.
type given struct {
	flag  cli.Flag
	name  string
	value string
}

// helpName is the flag that urfave/cli adds to every command.
const helpName = "help"

// scan splits the words after a command into flags and arguments.
func scan(command *cli.Command, args []string) (flags []given, arguments []string, err error) {
	known := knownFlags(command)
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return flags, append(arguments, args[i+1:]...), nil
		}
		if len(arg) < 2 || arg[0] != '-' {
			arguments = append(arguments, arg)
			continue
		}
		typed, value, hasValue := strings.Cut(arg, "=")
		flag := known[typed]
		switch {
		case flag == nil:
			return nil, nil, unknownFlag(command, known, typed)
		case hasValue:
		case isBool(flag):
			value = "true"
		case i+1 == len(args) || known[args[i+1]] != nil:
			return nil, nil, usageErrorf("%s needs a value; one that starts with a hyphen is written %s=VALUE", typed, typed)
		default:
			i++
			value = args[i]
		}
		flags = append(flags, given{flag: flag, name: flag.Names()[0], value: value})
	}
	return flags, arguments, nil
}

// knownFlags maps every way to type a flag, with one hyphen or two.
func knownFlags(command *cli.Command) map[string]cli.Flag {
	known := make(map[string]cli.Flag)
	for _, flag := range append(slices.Clone(command.Flags), cli.HelpFlag) {
		for _, name := range flag.Names() {
			known["-"+name] = flag
			known["--"+name] = flag
		}
	}
	return known
}

func unknownFlag(command *cli.Command, known map[string]cli.Flag, typed string) error {
	// -pSECRET must not be repeated.
	if len(typed) > 2 && typed[1] != '-' && known[typed[:2]] != nil {
		return usageErrorf("%s needs a space before its value; see wmproxy %s --help", typed[:2], command.Name)
	}
	if !plainWord.MatchString(strings.TrimLeft(typed, "-")) {
		return usageErrorf("there is a flag that wmproxy %s does not have; see wmproxy %s --help", command.Name, command.Name)
	}
	return usageErrorf("wmproxy %s has no flag %s; see wmproxy %s --help", command.Name, typed, command.Name)
}

func isBool(flag cli.Flag) bool {
	_, ok := flag.(*cli.BoolFlag)
	return ok
}

func isList(flag cli.Flag) bool {
	_, ok := flag.(*cli.StringSliceFlag)
	return ok
}

// finish checks the flags and arguments, adds the environment and returns the command
// line for urfave/cli.
func (p *program) finish(app *cli.App, command *cli.Command, flags []given, arguments []string) ([]string, error) {
	p.command = command.Name
	seen := make(map[string]bool)
	for _, g := range flags {
		if g.name == helpName {
			return []string{app.Name, command.Name, "--help"}, nil
		}
		if seen[g.name] && !isList(g.flag) && !isBool(g.flag) {
			return nil, usageErrorf("--%s is given twice; give it once", g.name)
		}
		seen[g.name] = true
	}
	if allowed := maxArguments(command); len(arguments) > allowed {
		are, most := fmt.Sprintf("are %d arguments", len(arguments)), fmt.Sprintf("at most %d", allowed)
		if len(arguments) == 1 {
			are = "is an argument"
		}
		if allowed == 0 {
			most = "none"
		}
		return nil, usageErrorf("there %s where wmproxy %s takes %s; put quotes around values with spaces, see wmproxy %s --help",
			are, command.Name, most, command.Name)
	}
	flags = append(flags, p.environment(command, seen)...)
	line := []string{app.Name, command.Name}
	for _, g := range flags {
		if err := p.checkValue(g); err != nil {
			return nil, err
		}
		line = append(line, "--"+g.name+"="+g.value)
	}
	return append(append(line, "--"), arguments...), nil
}

// maxArguments is one for a command that documents an argument, several for one
// that documents it with dots, else none.
func maxArguments(command *cli.Command) int {
	switch {
	case strings.Contains(command.ArgsUsage, "..."):
		return link.MaxLinks
	case command.ArgsUsage != "":
		return 1
	}
	return 0
}

// environment returns the values of flags that were not typed.
func (p *program) environment(command *cli.Command, typed map[string]bool) []given {
	p.fromEnv = make(map[string]string)
	var flags []given
	for _, flag := range command.Flags {
		name := flag.Names()[0]
		variable := envName(command.Name, name)
		text, o := p.getenv(variable), optionOf(command.Name, name)
		if typed[name] || typed[o.or] || text == "" {
			continue
		}
		p.fromEnv[name] = variable
		if !isList(flag) {
			flags = append(flags, given{flag: flag, name: name, value: text})
			continue
		}
		values := strings.Split(text, ",")
		if o.spaced {
			values = strings.Fields(text)
		}
		for _, value := range values {
			if value = strings.TrimSpace(value); value != "" {
				flags = append(flags, given{flag: flag, name: name, value: value})
			}
		}
	}
	return flags
}

// envName is the environment variable of a command's flag.
func envName(command, flag string) string {
	return strings.ToUpper("WMPROXY_" + command + "_" + strings.ReplaceAll(flag, "-", "_"))
}

// checkValue refuses the values that urfave/cli would refuse in its own words.
func (p *program) checkValue(g given) error {
	switch g.flag.(type) {
	case *cli.BoolFlag:
		if _, err := strconv.ParseBool(g.value); err != nil {
			return p.wrong(g.name, "must be true or false")
		}
	case *cli.DurationFlag:
		if _, err := time.ParseDuration(g.value); err != nil {
			return p.wrong(g.name, "must be a duration such as 30s or 5m")
		}
	}
	return nil
}

// wrong is the usage error of a flag's value, named as the user gave it.
func (p *program) wrong(flag, message string) error {
	if o := optionOf(p.command, flag); o.path != "" {
		return p.misconfigured(&config.Error{Paths: []string{o.path}, Message: message})
	}
	return usageErrorf("%s %s", p.origin(flag), message)
}

// origin returns the source of the flag's value: --flag or WMPROXY_CMD_FLAG.
func (p *program) origin(flag string) string {
	if variable := p.fromEnv[flag]; variable != "" {
		return variable
	}
	return "--" + flag
}
