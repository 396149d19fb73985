package entrance

import "errors"

// ErrCredentials means that an application did not authenticate.
var ErrCredentials = errors.New("wrong user name or password")
