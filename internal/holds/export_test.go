package holds

// Process returns the name of the store's records of this process.
func (b *Book) Process() string { return b.process }

// Held returns how many holds this process has, of all keys.
func (b *Book) Held() (held int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.keys {
		held += r.held()
	}
	return held
}
