// Reads a log folder with the Go project's own checksum-database library and nothing of ours.
//
//	audit DIR VKEY [OLD_CHECKPOINT ...]
//
// Checks the signature of the checkpoint, authenticates the tile of every entry against its root, compares every entry with
// its leaf, checks an inclusion proof for a sample of entries, and shows that the log extends each older checkpoint.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// C2SP's paths have no tile height and call data tiles entries.
func path(dir string, tile tlog.Tile) string {
	name := strings.TrimPrefix(tile.Path(), "tile/8/")
	return filepath.Join(dir, "tile", strings.Replace(name, "data/", "entries/", 1))
}

type tiles struct{ dir string }

func (t tiles) Height() int                                  { return 8 }
func (t tiles) SaveTiles(_ []tlog.Tile, _ [][]byte)          {}
func (t tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range wanted {
		data, err := os.ReadFile(path(t.dir, tile))
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	return all, nil
}

func open(file string, verifier note.Verifier) (tlog.Tree, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return tlog.Tree{}, err
	}
	opened, err := note.Open(text, note.VerifierList(verifier))
	if err != nil {
		return tlog.Tree{}, err
	}
	lines := strings.SplitN(opened.Text, "\n", 2)
	if lines[0] != verifier.Name() {
		return tlog.Tree{}, fmt.Errorf("origin %q is not %q", lines[0], verifier.Name())
	}
	// The library's own tree notes have a fixed first line; the rest is the same.
	return tlog.ParseTree([]byte("go.sum database tree\n" + lines[1]))
}

func entries(data []byte) ([][]byte, error) {
	var all [][]byte
	for len(data) > 0 {
		if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
			return nil, fmt.Errorf("an entry is cut short")
		}
		n := int(binary.BigEndian.Uint16(data))
		all = append(all, data[2:2+n])
		data = data[2+n:]
	}
	return all, nil
}

func audit(dir, key string, older []string) error {
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return err
	}
	tree, err := open(filepath.Join(dir, "checkpoint"), verifier)
	if err != nil {
		return err
	}
	reader := tlog.TileHashReader(tree, tiles{dir})
	for n := int64(0); n*256 < tree.N; n++ {
		width := int(min(tree.N-n*256, 256))
		data, err := os.ReadFile(path(dir, tlog.Tile{H: 8, L: -1, N: n, W: width}))
		if err != nil {
			return err
		}
		found, err := entries(data)
		if err != nil {
			return err
		}
		if len(found) != width {
			return fmt.Errorf("bundle %d: %d entries instead of %d", n, len(found), width)
		}
		var indexes []int64
		for i := range found {
			indexes = append(indexes, tlog.StoredHashIndex(0, n*256+int64(i)))
		}
		leaves, err := reader.ReadHashes(indexes)
		if err != nil {
			return err
		}
		for i, entry := range found {
			if tlog.RecordHash(entry) != leaves[i] {
				return fmt.Errorf("entry %d is not its leaf", n*256+int64(i))
			}
		}
		proof, err := tlog.ProveRecord(tree.N, n*256, reader)
		if err != nil {
			return err
		}
		if err := tlog.CheckRecord(proof, tree.N, tree.Hash, n*256, leaves[0]); err != nil {
			return err
		}
	}
	for _, file := range older {
		old, err := open(file, verifier)
		if err != nil {
			return err
		}
		if old.N == 0 {
			continue
		}
		proof, err := tlog.ProveTree(tree.N, old.N, reader)
		if err != nil {
			return err
		}
		if err := tlog.CheckTree(proof, tree.N, tree.Hash, old.N, old.Hash); err != nil {
			return err
		}
	}
	fmt.Printf("%s: %d entries, %d older checkpoints\n", verifier.Name(), tree.N, len(older))
	return nil
}

func main() {
	if err := audit(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "refused:", err)
		os.Exit(1)
	}
}
