interface Props {
  message: string;
  action?: string;
  onAction?: () => void;
}

/** What went wrong, in the server's words, and what can be done. */
export function Notice({ message, action, onAction }: Props) {
  return (
    <div class="notice" role="alert">
      <span>{message}</span>
      {action !== undefined && <button class="button" onClick={onAction}>{action}</button>}
    </div>
  );
}
