package httpserver

import "time"

// SetAnswerTimeout replaces AnswerTimeout, before the server runs.
func (s *Server) SetAnswerTimeout(d time.Duration) { s.listener.(*connections).answerTimeout = d }

// Close releases the listener of a server that does not run.
func (s *Server) Close() error { return s.listener.Close() }
