// Package store keeps items.
package store

import (
	"fmt"
	http "net/http"
	_ "embed"
)

// Limit is how many items are kept.
const Limit = 8

const (
	A, B = 1, 2
	// C counts on.
	C = iota
)

var state int

// Store keeps items.
type Store[T any] struct {
	items []T
	http.Client
	name, path string
}

type Keeper interface {
	Keep(item string) error
	fmt.Stringer
}

type ID string
type Alias = Store[int]

// Open opens a store.
func Open(path string) (*Store[int], error) {
	type local struct{ x int }
	f := func() int { return 1 }
	return &Store[int]{}, fmt.Errorf("%d", f())
}

func (s *Store[T]) Keep(item T) { s.items = append(s.items, item) }
